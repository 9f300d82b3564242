"""The figure of the suite: the share of the way over tokens, and over CPU seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from agents import files
from experiments.optimum.table import Group, Records, groups
from experiments.share import normalized_objective

GRAY = 7  # of Matplotlib's ten colours: that of best of n
AXES = {"num_timesteps": "tokens", "cpu_seconds": "CPU seconds of sampling and learning"}


def draw(folder: Path, records: Records) -> None:
    """Draws `curves.png`: a column for each group of tasks; a line is a mean over tasks and seeds."""
    found = list(groups(records))
    figure = Figure(figsize=(4.2 * len(found), 7), layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    agents = list(dict.fromkeys(trial["agent"] for group in found for trial, _ in group.trials))
    palette = [matplotlib.colormaps["tab10"](i) for i in range(10) if i != GRAY]
    colours = {agent: palette[i % len(palette)] for i, agent in enumerate(agents)}
    for column, group in enumerate(found):
        for row, axis in enumerate(AXES):
            _panel(grid[row, column], group, axis, colours)
        grid[0, column].set_title(group.title)
    for row in grid:
        row[0].set_ylabel("share of the way to the optimum")
    handles = dict[str, Artist]()
    for panel in grid.flatten():
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=2 * len(found), frameon=False)
    files.write_file(folder / "curves.png", lambda new: figure.savefig(new, format="png", dpi=110))


def _panel(panel: Axes, group: Group, axis: str, colours: Mapping[str, tuple[float, ...]]) -> None:
    for name in group.shown():
        trials = group.of(name)
        grid = np.linspace(0, np.median([trial["curve"][axis][-1] for trial, _ in trials]), 60)
        lines = np.array(
            [
                np.interp(
                    grid,
                    trial["curve"][axis],
                    [normalized_objective(value, baselines) or 0.0 for value in trial["curve"]["objective"]],
                )
                for trial, baselines in trials
            ]
        )
        agent = trials[0][0]["agent"]
        style = "--" if trials[0][0]["peer"] else "-"
        panel.plot(grid, lines.mean(axis=0), style, color=colours[agent], label=agent)
        if len(lines) > 1:
            low, high = np.quantile(lines, (0.25, 0.75), axis=0)
            panel.fill_between(grid, low, high, color=colours[agent], alpha=0.12, lw=0)
    kept = [(baselines["best_of_n"], baselines) for _, baselines in group.trials if baselines["best_of_n"]]
    shares = [normalized_objective(best["objective"], baselines) or 0.0 for best, baselines in kept]
    if kept:
        panel.axhline(float(np.mean(shares)), color="gray", ls="-.", label=f"best of {kept[0][0]['n']}")
    panel.axhline(1.0, color="black", ls="--", lw=1, label="optimum")
    low = min([-0.05, *(float(np.min(np.asarray(line.get_ydata()))) - 0.02 for line in panel.get_lines())])
    panel.set(xlabel=AXES[axis], ylim=(low, 1.06))
    panel.spines[["top", "right"]].set_visible(False)
