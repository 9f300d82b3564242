"""`curves.png`: figures of the page in one picture, for a README."""

from __future__ import annotations

from pathlib import Path

from matplotlib.lines import Line2D

from agents import files
from experiments.html_report.figures import curve_panels, plane_panel
from experiments.html_report.runs import Runs
from experiments.html_report.svg import INK, MUTED, SIZE, colour, new_axes

PICTURE = "curves.png"
# titles of the page, with what its captions say; and score against KL
SHOWN = {"Objective J": "", "Held-out prompts": ", dashed", "Gold score": "", "KL to the reference": ""}
COLUMNS = {4: 2}  # by the number of panels; else 3


def write_picture(runs: Runs, path: Path) -> None:
    """Draws the curves over tokens and score against KL, in the colours of the page's light theme."""
    panels = [panel for panel in curve_panels(runs) if panel.title in SHOWN]
    count = len(panels) + 1
    columns = COLUMNS.get(count, 3)
    figure, grid = new_axes(SIZE, -(-count // columns), columns)
    agents = [Line2D([], [], color=colour(i), label=name) for i, name in enumerate(runs.trials)]
    legend = figure.legend(handles=agents, loc="outside lower center", ncols=4, frameon=False)
    for text in legend.get_texts():
        text.set(color=INK, parse_math=False)
    for axes, panel in zip(grid, [*panels, plane_panel(runs)], strict=False):
        axes.set_title(panel.title + SHOWN.get(panel.title, ""), loc="left", color=INK, fontweight="bold", fontsize=11)
        axes.set_xlabel("tokens", color=MUTED)
        panel.fill(axes)
    for axes in grid[count:]:
        axes.remove()
    files.write_file(path, lambda new: figure.savefig(new, format="png", dpi=150))
