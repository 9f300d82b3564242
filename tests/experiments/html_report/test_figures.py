"""The curves of a page and of its picture: interrupted at each gap, thinned with both ends, without pyplot."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.html_report.figures import (
    MOST_IN_FIGURE,
    curve_panels,
    drawing,
    interrupted,
    most_points,
    plane_panel,
    rows_of,
)
from experiments.html_report.labels import Labels
from experiments.html_report.picture import PICTURE, write_picture
from experiments.html_report.runs import Runs, read_runs
from experiments.html_report.svg import AGENTS, VARIABLES, WIDE, new_axes


def with_rows(runs: Runs, count: int, seeds: int) -> Runs:
    """The runs of PPO alone, with so many evaluations and seeds."""
    run = runs.trials["PPO"][0]
    rows = [run.rows[-1] | {"num_updates": i, "num_timesteps": 100 * i} for i in range(count)]
    summary = run.summary | {"gaps": []}
    return replace(runs, trials={"ppo": [replace(run, seed=i, rows=rows, summary=summary) for i in range(seeds)]})


@pytest.mark.parametrize(
    ("gaps", "breaks"), [([], []), ([[3, 5]], [2]), ([[3, 5], [10, 12]], [2, 9]), ([[0, 1], [20, 30]], [])]
)
def test_a_curve_is_interrupted_at_each_gap(gaps: list[list[int]], breaks: list[int]) -> None:
    """One nan between the last row before a gap and the first one after it; none before the first or after the last."""
    updates = [i for i in range(20) if not any(first <= i <= last for first, last in gaps)]
    rows = [{"num_updates": i, "num_timesteps": 10 * i, "m": 0.5 * i} for i in updates]
    tokens, values = interrupted(rows, gaps, ["num_timesteps", "m"])
    assert [x for x in values if x == x] == [0.5 * i for i in updates] and len(tokens) == len(values)
    assert [int(tokens[i - 1] / 10) for i in range(len(values)) if np.isnan(values[i])] == breaks


@pytest.mark.parametrize(("count", "seeds"), [(40, 3), (1000, 1), (1000, 10), (1000, 300)])
def test_each_run_keeps_its_first_and_last_point(count: int, seeds: int, comparison: Path) -> None:
    """In every figure, however many there are; a pointer finds all that are drawn."""
    runs = with_rows(read_runs([comparison]), count, seeds)
    kept = rows_of(runs.all[0], ["eval/kl"], most_points(runs))
    assert kept[0]["num_updates"] == 0 and kept[-1]["num_updates"] == count - 1
    assert len(kept) == min(count, most_points(runs)) and most_points(runs) <= max(2, MOST_IN_FIGURE // seeds)
    steps = np.diff([row["num_updates"] for row in kept])
    assert steps.max() - steps.min() <= 1
    for panel in (plane_panel(runs), *(curve_panels(runs) if seeds < 20 else [])):
        texts = {text for _, _, text in drawing(panel).points}
        for run in runs.all:
            assert any(text.startswith(f"{run.name} · {100 * (count - 1):,} tokens") for text in texts)


def test_a_thick_line_is_the_mean_over_seeds(comparison: Path) -> None:
    """Interpolated linearly between evaluations, where all seeds have them; nothing where rows of one were lost."""
    runs = read_runs([comparison])
    run, values = runs.trials["PPO"][0], [[1.0, 3.0, 2.0], [2.0, 0.0, 5.0]]
    places = [[0, 100, 200], [0, 120, 260]]
    rows = [
        [{"eval/kl": y, "num_timesteps": x, "num_updates": i} for i, (x, y) in enumerate(zip(*each, strict=True))]
        for each in zip(places, values, strict=True)
    ]
    seeds = [replace(run, seed=i, rows=rows[i], summary=run.summary | {"gaps": []}) for i in range(2)]
    (panel,) = curve_panels(replace(runs, trials={"ppo": seeds}))
    _, (axes,) = new_axes()
    panel.fill(axes)
    *thin, mean = axes.get_lines()
    assert [line.get_ydata().tolist() for line in thin] == values
    x = mean.get_xdata()
    assert (x[0], x[-1]) == (0, 200)
    both = [np.interp(x, *each) for each in zip(places, values, strict=True)]
    np.testing.assert_allclose(mean.get_ydata(), np.mean(both, axis=0))
    seeds[1].summary["gaps"] = [[1, 1]]
    _, (axes,) = new_axes()
    panel.fill(axes)
    assert len(axes.get_lines()) == len(thin)


def test_the_picture_has_the_lines_of_the_page(comparison: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Those of J, KL and score against KL, in the colours of the light theme; a name is no formula."""
    runs = read_runs([comparison])
    runs.trials["a$b$"] = runs.trials.pop("PPO")
    drawn, saved = list[Figure](), Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **more: drawn.append(self) or saved(self, *args, **more))
    write_picture(runs, tmp_path / PICTURE)
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    shown = ["Objective J", "KL to the reference", "Score and KL"]
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == shown
    panels = {panel.title: panel for panel in [*curve_panels(runs), plane_panel(runs)]}
    for axes in drawn[0].axes:
        _, (alone,) = new_axes()
        panels[axes.get_title(loc="left")].fill(alone)
        for one, other in zip(axes.get_lines(), alone.get_lines(), strict=True):
            np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
            assert one.get_color() == other.get_color()
    texts = drawn[0].legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["REINFORCE", "a$b$"] and not texts[1].get_parse_math()


def test_the_share_of_the_way_is_beside_j(comparison: Path) -> None:
    """0 at the reference's J, 100 at J*. Control: where no optimum is known there is no such axis."""
    runs = read_runs([comparison])
    figure, (axes,) = new_axes()
    curve_panels(runs)[0].fill(axes)
    (right,) = axes.child_axes
    low, high = runs.baselines["reference"], runs.baselines["optimum"]
    assert right.get_ylabel() == "share of the way, %" and low < high
    axes.set_ylim(low, high)
    figure.draw_without_rendering()  # takes over the limits
    assert right.get_ylim() == pytest.approx((0.0, 100.0))
    _, (without,) = new_axes()
    curve_panels(replace(runs, baselines=runs.baselines | {"optimum": None}))[0].fill(without)
    assert without.child_axes == []


def test_the_colours_of_figures_are_those_of_the_light_theme() -> None:
    """In the page each is the variable of that name."""
    style = (resources("experiments.html_report") / "style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"(--[\w-]+): light-dark\((#\w+),", style))
    assert {name: light[name] for name in VARIABLES.values()} == {name: hue for hue, name in VARIABLES.items()}
    assert len(VARIABLES) == 3 + len(AGENTS) and f"--agent-{len(AGENTS)}" not in light


def test_the_backend_of_a_notebook_stays() -> None:
    """Neither the page nor the report of a comparison chooses a backend, as importing pyplot would."""
    code = "import sys, matplotlib; matplotlib.use('svg'); import experiments.compare, experiments.html_report as r; "
    code += "print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["svg", "False"]


def crowded() -> tuple[Labels, Axes]:
    """Marks that are close together, on a curve, and two levels."""
    _, (axes,) = new_axes(WIDE)
    x = np.linspace(0, 3, 30)
    axes.plot(x, 1 - np.exp(-x))
    labels = Labels(axes, size=17)
    for i, name in enumerate(("best of 16", "estimated optimum", "reference")):
        axes.plot([2 + 0.02 * i], [0.86], "D")
        labels.mark(2 + 0.02 * i, 0.86, name)
    for value in (0.85, 0.87):
        axes.axhline(value)
        labels.level(value, f"level {value}")
    return labels, axes


def test_labels_overlap_neither_each_other_nor_the_edge() -> None:
    """However close their marks are. Control: each at its first place."""
    labels, axes = crowded()
    boxes = labels.place()
    assert len(boxes) == 5 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    whole = axes.figure.bbox
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 for box in boxes)
    first, _ = crowded()
    first.waiting = [(note, places[:1]) for note, places in first.waiting]
    assert any(a.overlaps(b) for a, b in itertools.combinations(first.place(), 2))


def test_a_label_goes_where_no_curve_is() -> None:
    """Of the places along a level that above and below its ends and its middle."""
    for low, high, side in ((0.5, 1.0, "left"), (0.0, 0.5, "right")):
        _, (axes,) = new_axes()
        for height in np.linspace(0.4, 0.6, 9):
            axes.plot([low, high], [height, height])
        axes.set(xlim=(0, 1), ylim=(0, 1))
        labels = Labels(axes)
        labels.level(0.5, "reference")
        labels.place()
        assert labels.waiting[0][0].get_ha() == side
