"""Matplotlib's figures as SVG that takes its colours and its font from the page, with the points that a pointer finds.

Matplotlib is here already, and draws a figure in about 10 kB; a library with a script of its own (Vega, Plotly) would
put 1 MB or more into each page. What SVG lacks, the numbers under the pointer, the page's script has from `points`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

SIZE, WIDE = (340, 236), (600, 380)  # in pixels of the page, which shows a figure at about its size
# of the page's light theme, see style.css; in the page its variables take their places
INK, MUTED, GRID = "#1d1c1a", "#6a665e", "#e4e0d7"
AGENTS = ("#2b67b1", "#c65d1e", "#24866a", "#8747a6", "#a57c12", "#b53a5c", "#3d7f95", "#6f6a63")
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule"}
VARIABLES |= {hue: f"--agent-{i}" for i, hue in enumerate(AGENTS)}
IDS = re.compile(r' id="[\w.]+_\d+"')  # of groups; nothing refers to them


def _settings() -> AbstractContextManager[None]:
    return matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "textenv", "font.size": 11})


class Point(NamedTuple):
    """A point that a pointer finds: data coordinates, and the text that is shown."""

    x: float
    y: float
    text: str


class Drawing(NamedTuple):
    """A figure of the page.

    Attributes:
        title: above it.
        about: below it, a sentence.
        svg: an element.
        points: x, y in the coordinates of the element's viewBox, and a text.
    """

    title: str
    about: str
    svg: str
    points: list[tuple[float, float, str]]


def colour(index: int) -> str:
    """The colour of an agent."""
    return AGENTS[index % len(AGENTS)]


def new_axes(size: tuple[int, int] = SIZE, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure, without pyplot, so that a notebook keeps its backend; and its axes, each without a frame.

    Args:
        size: width and height of a pair of axes, in pixels of the page.
        rows, columns: of axes.
    """
    with _settings():
        figure = Figure(figsize=(columns * size[0] / 72, rows * size[1] / 72), dpi=72, layout="constrained")
        grid = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axes in grid:
        _style(axes)
    return figure, grid


def _style(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, length=0, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def short_number(value: float) -> str:
    """A number for an axis: 20000 is 20k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def draw(figure: Figure, axes: Axes, title: str, about: str, points: Sequence[Point]) -> Drawing:
    """Returns the figure as an element, with its points in the element's coordinates."""
    with _settings():
        text = io.StringIO()
        figure.savefig(text, format="svg", dpi=72, transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = IDS.sub("", svg).replace("\n", " ")
    svg = re.sub(r"  +", " ", svg)
    for hue, variable in VARIABLES.items():
        svg = svg.replace(hue, f"var({variable})")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    placed: list[tuple[float, float, str]] = []
    if points:
        pixels = axes.transData.transform([(point.x, point.y) for point in points])
        height = figure.get_figheight() * 72
        placed = [
            (round(float(x), 1), round(height - float(y), 1), point.text)
            for (x, y), point in zip(pixels, points, strict=True)
        ]
    return Drawing(title, about, svg, placed)
