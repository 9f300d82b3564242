"""The curves of a page: interrupted at each gap, thinned with both ends, without pyplot."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from experiments.html_report.figures import MOST_IN_FIGURE, curves, interrupted, most_points, plane, rows_of
from experiments.html_report.labels import Labels
from experiments.html_report.runs import Runs, read_runs
from experiments.html_report.svg import WIDE, new_axes


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
    for drawing in (plane(runs), *(curves(runs) if seeds < 20 else [])):
        texts = {text for _, _, text in drawing.points}
        for run in runs.all:
            assert any(text.startswith(f"{run.name} · {100 * (count - 1):,} tokens") for text in texts)


def test_the_backend_of_a_notebook_stays() -> None:
    """Neither the page nor the report of a comparison chooses a backend, as importing pyplot would."""
    code = "import sys, matplotlib; matplotlib.use('svg'); import experiments.compare, experiments.html_report as r; "
    code += "print(matplotlib.get_backend(), 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["svg", "False"]


def crowded() -> tuple[Labels, Axes]:
    """Marks that are close together, on a curve, and two levels."""
    _, axes = new_axes(WIDE)
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
        _, axes = new_axes()
        for height in np.linspace(0.4, 0.6, 9):
            axes.plot([low, high], [height, height])
        axes.set(xlim=(0, 1), ylim=(0, 1))
        labels = Labels(axes)
        labels.level(0.5, "reference")
        labels.place()
        assert labels.waiting[0][0].get_ha() == side
