"""What the page and `curves.png` draw: curves over tokens, and score against KL with the exact frontier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from agents.files import JsonObject
from experiments.html_report.labels import Labels
from experiments.html_report.run import Run
from experiments.html_report.runs import Runs
from experiments.html_report.svg import GRID, INK, MUTED, SIZE, Drawing, Point, colour, draw, new_axes
from experiments.metrics_file import Row
from experiments.share import optimum_band

MOST_POINTS = 100  # of a curve
MOST_IN_FIGURE = 500  # of all its curves


class Curve(NamedTuple):
    """A metric over tokens."""

    metric: str
    title: str
    about: str


CURVES = (
    Curve("eval/objective", "Objective J", "E[score + shaping] \N{MINUS SIGN} β KL at each evaluation."),
    Curve("eval/score", "Score", "Its mean at each evaluation, without the KL."),
    Curve("eval/gold_score", "Gold score", "Measured, not trained on."),
    Curve("eval/kl", "KL to the reference", "Nats, over whole completions."),
    Curve("objective/kl_coef", "β", "As the agent adapts it; J, and all that is exact, have the task's."),
    Curve("objective/entropy", "Entropy", "Nats, of the completions that were trained on."),
    Curve("policy/clipfrac_avg", "Clip fraction", "The part of the tokens whose ratio was clipped."),
    Curve("val/explained_variance", "Explained variance of V", "1 is perfect, 0 as good as a constant."),
)


class Panel(NamedTuple):
    """A pair of axes.

    Attributes:
        title: above it.
        about: below it, a sentence.
        fill: draws on the axes, whose size is known, and returns the points for a pointer.
    """

    title: str
    about: str
    fill: Callable[[Axes], list[Point]]


def curve_panels(runs: Runs) -> list[Panel]:
    """A panel for each metric that a run has, and for J on held-out prompts.

    A thin line is a seed, a thick one the mean of evaluations.
    """
    panels = [Panel(curve.title, curve.about, partial(_curve, runs, curve)) for curve in CURVES if _has(runs, curve)]
    if any("held_out/objective" in row for run in runs.all for row in run.rows):
        about = "J on prompts not trained on (dashed), and on those trained on (thin)."
        panels.insert(1, Panel("Held-out prompts", about, partial(_held_out, runs)))
    return panels


def drawing(panel: Panel, size: tuple[int, int] = SIZE) -> Drawing:
    """The panel as a figure of the page."""
    figure, (axes,) = new_axes(size)
    return draw(figure, axes, panel.title, panel.about, panel.fill(axes))


def _has(runs: Runs, curve: Curve) -> bool:
    """Whether the curve tells anything: a metric of the training may be 0 throughout, where nothing is clipped, say."""
    values = {row[curve.metric] for run in runs.all for row in run.rows if curve.metric in row}
    return bool(values) and (values != {0.0} or curve.metric.startswith("eval/"))


def _curve(runs: Runs, curve: Curve, axes: Axes) -> list[Point]:
    lines = Lines(axes, most_points(runs))
    for i, trials in enumerate(runs.trials.values()):
        for run in trials:
            alone = len(trials) == 1
            lines.line(run, curve.metric, colour(i), width=1.8 if alone else 1.2, alpha=1 if alone else 0.7)
        if len(trials) > 1 and curve.metric.startswith("eval/"):
            lines.mean(trials, curve.metric, colour(i))
    labels = Labels(axes)
    if curve.metric == "eval/objective":
        labels = _levels(axes, runs.baselines)
        _add_share_axis(axes, runs.baselines)
    elif curve.metric in ("eval/kl", "policy/clipfrac_avg", "objective/entropy"):
        axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    labels.place()
    return lines.points


def _add_share_axis(axes: Axes, baselines: JsonObject) -> None:
    """Adds the share of the way on the right, where J* is known and is not J_ref."""
    reference, optimum = baselines["reference"], baselines["optimum"]
    if optimum is None or optimum == reference:
        return
    gap = optimum - reference
    right = axes.secondary_yaxis(
        "right", functions=(lambda j: 100 * (j - reference) / gap, lambda share: reference + gap * share / 100)
    )
    right.set_ylabel("share of the way, %", color=MUTED)
    right.tick_params(colors=MUTED, length=0)
    right.spines[:].set_visible(False)


def most_points(runs: Runs) -> int:
    """How many points a curve keeps, so that a figure of many runs stays small."""
    return max(2, min(MOST_POINTS, MOST_IN_FIGURE // len(runs.all)))


def rows_of(run: Run, metrics: Sequence[str], most: int) -> list[Row]:
    """The rows that have some metrics: at most `most`, evenly spaced, the first and the last among them."""
    rows = [row for row in run.rows if all(row.get(metric) is not None for metric in metrics)]
    if len(rows) > most:
        rows = [rows[round(i)] for i in np.linspace(0, len(rows) - 1, most).tolist()]
    return rows


def interrupted(rows: Sequence[Row], gaps: Sequence[Sequence[int]], metrics: Sequence[str]) -> list[list[float]]:
    """The values of each metric, with one nan between two rows where rows were lost; gaps are of updates."""
    values: list[list[float]] = [[] for _ in metrics]
    before: int | None = None
    for row in rows:
        update = row["num_updates"]
        lost = before is not None and any(before < first and last < update for first, last in gaps)
        for metric, column in zip(metrics, values, strict=True):
            column += [np.nan] * lost + [row[metric]]
        before = update
    return values


class Lines:
    """The curves of a figure.

    Args:
        axes: where they are drawn.
        most: points of each.
    """

    def __init__(self, axes: Axes, most: int) -> None:
        self.axes, self.most = axes, most
        self.points: list[Point] = []

    def line(self, run: Run, metric: str, hue: str, *, width: float, alpha: float, style: str = "-") -> None:
        """Draws a run's metric, interrupted where rows were lost."""
        rows = rows_of(run, [metric], self.most)
        x, y = interrupted(rows, run.summary["gaps"], ["num_timesteps", metric])
        self.axes.plot(x, y, style, color=hue, lw=width, alpha=alpha, solid_capstyle="round")
        if len(rows) == 1:
            self.axes.plot(x, y, "o", color=hue, ms=4)
        suffix = ", held out" if metric.startswith("held_out/") else ""
        self.points += [
            Point(
                row["num_timesteps"],
                row[metric],
                f"{run.name}{suffix} · {row['num_timesteps']:,} tokens · {number(row[metric])}",
            )
            for row in rows
        ]

    def mean(self, trials: list[Run], metric: str, hue: str, *, width: float = 2.2, style: str = "-") -> None:
        """Draws the mean over seeds, where all of them have the metric; nothing if rows of a seed were lost."""
        known = [rows_of(run, [metric], self.most) for run in trials]
        if any(len(rows) < 2 for rows in known) or any(run.summary["gaps"] for run in trials):
            return
        columns = [interrupted(rows, [], ["num_timesteps", metric]) for rows in known]
        grid = np.linspace(max(tokens[0] for tokens, _ in columns), min(tokens[-1] for tokens, _ in columns), 80)
        lines = [np.interp(grid, tokens, values) for tokens, values in columns]
        self.axes.plot(grid, np.mean(lines, axis=0), style, color=hue, lw=width, solid_capstyle="round")


def _levels(axes: Axes, baselines: JsonObject, suffix: str = "") -> Labels:
    """Draws J of the reference and of the optimum; returns their labels, to be placed."""
    labels = Labels(axes)
    levels = [(baselines["reference"], f"reference{suffix}", (0, (1, 2.5)))]
    if (optimum := baselines["optimum"]) is not None:
        estimated = baselines.get("optimum_stderr") is not None
        levels.append((optimum, f"{'estimated' if estimated else 'exact'} optimum{suffix}", (0, (5, 3))))
        if (band := optimum_band(baselines)) is not None:
            axes.axhspan(*band, color=GRID, alpha=0.6, lw=0)
    for value, label, dashes in levels:
        axes.axhline(value, color=INK, lw=1, ls=dashes)
        labels.level(value, label)
    axes.margins(y=0.1)
    return labels


def _held_out(runs: Runs, axes: Axes) -> list[Point]:
    """J on the prompts that are not trained on beside J on those that are."""
    lines = Lines(axes, most_points(runs))
    for i, trials in enumerate(runs.trials.values()):
        hue, alone = colour(i), len(trials) == 1
        for run in trials:
            width, alpha = (2.0, 1.0) if alone else (1.0, 0.4)
            lines.line(run, "held_out/objective", hue, width=width, alpha=alpha, style="--")
            if alone:
                lines.line(run, "eval/objective", hue, width=1.0, alpha=0.7)
        if not alone:
            lines.mean(trials, "held_out/objective", hue, style="--")
            lines.mean(trials, "eval/objective", hue, width=1.0)
    axes.set_xlim(left=0)
    if others := runs.baselines.get("held_out"):
        _levels(axes, others, ", held out").place()
    return lines.points


def plane_panel(runs: Runs) -> Panel:
    """Score against KL: the path of each seed, the reference, the optimum, and the exact frontier where it is known."""
    about = Markup("Each line is a seed, from the first evaluation to the dot at the last.")
    if runs.frontier is not None:
        about += Markup(
            " Grey is the exact frontier, π ∝ π<sub>ref</sub> exp(score/b), from b = 0 to the reference: no policy has"
            " a higher score at its KL."
        )
    return Panel("Score and KL", about, partial(_plane, runs))


def _plane(runs: Runs, axes: Axes) -> list[Point]:
    points, labels = list[Point](), Labels(axes, size=17)  # style.css, on a phone
    frontier, baselines = runs.frontier, runs.baselines
    if frontier is not None:
        kl, score = [*frontier["kl"], 0.0], [*frontier["score"], baselines["reference_score"]]
        axes.plot(kl, score, color=MUTED, lw=1.4)
        points += [
            Point(x, y, f"frontier, b = {b:.3g} · KL {number(x)} · score {number(y)}")
            for x, y, b in zip(frontier["kl"], frontier["score"], frontier["kl_coef"], strict=True)
        ]
    marks: list[tuple[float | None, float | None, str, str]] = [(0.0, baselines["reference_score"], "reference", "o")]
    estimated = "" if baselines.get("optimum_stderr") is None else "estimated "
    marks.append((baselines.get("optimum_kl"), baselines.get("optimum_score"), f"{estimated}optimum", "D"))
    marks += [
        (each.get("kl"), each.get("score"), name, "*") for name, each in runs.untrained.items() if name != "random"
    ]
    for x, y, name, shape in marks:
        if x is not None and y is not None:
            axes.plot([x], [y], shape, color=INK, ms=8 if shape == "*" else 5, zorder=4)
            points.append(Point(x, y, f"{name} · KL {number(x)} · score {number(y)}"))
            labels.mark(x, y, name)
    for i, trials in enumerate(runs.trials.values()):
        for run in trials:
            rows = rows_of(run, ["eval/kl", "eval/score"], most_points(runs))
            tokens, kls, scores = interrupted(rows, run.summary["gaps"], ["num_timesteps", "eval/kl", "eval/score"])
            axes.plot(kls, scores, color=colour(i), lw=1.2, alpha=0.8, solid_capstyle="round")
            axes.plot(kls[-1:], scores[-1:], "o", color=colour(i), ms=5, zorder=5)
            points += [
                Point(x, y, f"{run.name} · {at:,} tokens · KL {number(x)} · score {number(y)}")
                for at, x, y in zip(tokens, kls, scores, strict=True)
                if at == at  # nan: an interruption
            ]
    axes.margins(0.08)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel("KL to the reference, nats", color=MUTED, labelpad=10)
    axes.set_ylabel("score", color=MUTED, labelpad=16)
    labels.place()
    return points


def number(value: float) -> str:
    """A number of a run as the page shows it, here and in its script."""
    text = f"{value:.{4 if abs(value) < 0.0005 else 3}f}"  # a small one is not shown as 0
    return "0.000" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
