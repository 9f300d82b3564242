"""The curves of a comparison: objective and KL against tokens, score against KL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents import files
from agents.files import JsonObject
from experiments.metrics_file import Row, find_gaps, read_metrics
from experiments.share import normalized_objective, optimum_band


def curves(
    folder: Path, summaries: Mapping[str, list[JsonObject]], baselines: JsonObject, untrained: Mapping[str, JsonObject]
) -> None:
    """Draws `curves.png`: objective and KL against tokens; score (and gold score) against KL.

    Against tokens: a line is an agent's mean over seeds, its band goes from the lowest seed to the highest. It has a
    gap where a seed's rows were lost.
    """
    gold = baselines.get("reference_gold_score") is not None
    shape, size = ((2, 2), (11, 8)) if gold else ((1, 3), (15, 4.2))
    figure = Figure(figsize=size, layout="constrained")  # without pyplot: a notebook keeps its backend
    axes = figure.subplots(*shape).flatten()
    against_kl = {"score": axes[2], "gold_score": axes[3]} if gold else {"score": axes[2]}
    for name, trials in summaries.items():
        logged = [Logged.read(folder / name / f"seed-{trial['seed']}", trial) for trial in trials]
        others = ("held_out/objective",) if trials[0].get("held_out") else ()
        tokens = np.linspace(0, max(trial["num_timesteps"] for trial in trials), 60)
        lines = {
            metric.removeprefix("eval/"): np.array([each.over_tokens(metric, tokens) for each in logged])
            for metric in (*(f"eval/{name}" for name in ("objective", "kl", *against_kl)), *others)
        }
        for axis, metric in zip(axes, ("objective", "kl"), strict=False):
            (line,) = axis.plot(tokens, lines[metric].mean(axis=0), label=name)
            low, high = lines[metric].min(axis=0), lines[metric].max(axis=0)
            axis.fill_between(tokens, low, high, color=line.get_color(), alpha=0.2, lw=0)
        for metric in others:
            axes[0].plot(tokens, lines[metric].mean(axis=0), color=line.get_color(), ls=":", label=f"{name}, held out")
        for metric, axis in against_kl.items():
            axis.plot(lines["kl"].T, lines[metric].T, color=line.get_color(), alpha=0.35, lw=1)
            axis.plot(
                [trial["kl"] for trial in trials],
                [trial[metric] for trial in trials],
                "o",
                color=line.get_color(),
                ms=4,
            )
    _draw_baselines(axes[0], baselines)
    if baselines.get("held_out"):
        _draw_baselines(axes[0], baselines["held_out"], ", held out", alpha=0.4)
    for name, measured in untrained.items():
        if name == "random":  # it is far below, and would compress all other curves
            continue
        axes[0].axhline(measured["objective"], color="gray", ls="-.", label=name)
        for metric, axis in against_kl.items():
            axis.plot(measured["kl"], measured[metric], "*", color="gray", ms=9)
    _add_share_axis(axes[0], baselines)
    if (best := baselines.get("optimum_kl")) is not None:
        axes[2].plot(best, baselines["optimum_score"], "*", color="black", ms=9)
    kl = "KL(pi || pi_ref) over whole completions, nats"
    axes[0].set(xlabel="tokens", ylabel="objective J = E[score + shaping] - beta KL")
    axes[1].set(xlabel="tokens", ylabel=kl, ylim=(0, None))
    axes[2].set(
        xlabel=kl,
        ylabel="score",
        xlim=(0, None),
        title="a line per seed, a dot at its end; stars: best of n, pi* (black)",
    )
    if gold:
        axes[3].set(xlabel=kl, ylabel="gold score", xlim=(0, None), title="measured, not trained on")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    files.write_file(folder / "curves.png", lambda new: figure.savefig(new, format="png", dpi=110))


def _draw_baselines(axis: Axes, baselines: JsonObject, suffix: str = "", alpha: float = 1.0) -> None:
    """Draws J of the reference and of the optimum; a band is the interval of its estimate."""
    axis.axhline(baselines["reference"], color="gray", ls=":", label=f"reference{suffix}", alpha=alpha)
    if baselines["optimum"] is not None:
        estimated = baselines.get("optimum_stderr") is not None
        label = f"optimum, estimated{suffix}" if estimated else f"exact optimum{suffix}"
        axis.axhline(baselines["optimum"], color="black", ls="--", label=label, alpha=alpha)
        if (band := optimum_band(baselines)) is not None:
            axis.axhspan(*band, color="black", alpha=0.1 * alpha, lw=0)


def _add_share_axis(axis: Axes, baselines: JsonObject) -> None:
    """Adds the share of the way on the right, where J* is known and is not J_ref."""
    if normalized_objective(baselines["reference"], baselines) is None:
        return
    reference, gap = baselines["reference"], baselines["optimum"] - baselines["reference"]
    right = axis.secondary_yaxis(
        "right", functions=(lambda j: 100 * (j - reference) / gap, lambda share: reference + gap * share / 100)
    )
    right.set_ylabel("share of the way, %")


class Logged(NamedTuple):
    """What a trial has logged: its rows, and the updates whose rows were lost."""

    rows: list[Row]
    gaps: list[list[int]]

    @classmethod
    def read(cls, folder: Path, summary: JsonObject) -> Logged:
        """Reads `metrics.jsonl` of a trial that has finished."""
        rows = read_metrics(folder)
        return cls(rows, find_gaps(rows, summary["num_updates"]))

    def over_tokens(self, metric: str, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """A metric of evaluations, `eval/...` or `held_out/...`, at the given numbers of tokens, of the same shape.

        It is interpolated linearly between evaluations, and nan where rows between them were lost.
        """
        line = np.full(len(tokens), np.nan)
        evaluations = [row for row in self.rows if "eval/objective" in row]
        if not evaluations:
            return line
        names = ("num_timesteps", metric, "num_updates")
        at, values, updates = (np.array([row[name] for row in evaluations], dtype=float) for name in names)
        line[:] = np.interp(tokens, at, values)
        bounds = np.array([-np.inf, *at, np.inf])
        for first, _ in self.gaps:
            before = np.searchsorted(updates, first)  # evaluations before the gap
            line[(tokens > bounds[before]) & (tokens < bounds[before + 1])] = np.nan
        return line
