"""Labels of marks and levels in a figure, each at the place where it hides least."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox, BboxBase
from numpy.typing import NDArray

from experiments.html_report.svg import MUTED

SIZE = 11  # of the font
STEP = 2.0  # pixels between the points of a curve that are looked at
BESIDE = [(8, -4, "left"), (-8, -4, "right"), (-8, 6, "right"), (8, 6, "left"), (8, -14, "left"), (-8, -14, "right")]
BESIDE += [(0, 10, "center"), (0, -19, "center"), (14, 20, "left"), (-14, 20, "right"), (14, -28, "left")]
ALONG = [(4, "bottom"), (-4, "top"), (18, "bottom"), (-18, "top")]


class Place(NamedTuple):
    """Where a label may be: a point, the offset from it, and the alignment there."""

    at: tuple[float, float]
    offset: tuple[float, float]
    horizontal: str
    vertical: str


class Labels:
    """The labels of a figure; `place` puts them where all else is drawn.

    Args:
        axes: of the figure.
        size: of the font on a phone, in units of the figure, for which there must be room too.
    """

    def __init__(self, axes: Axes, size: float = SIZE) -> None:
        self.axes, self.size = axes, size
        self.waiting: list[tuple[Annotation, list[Place]]] = []

    def mark(self, x: float, y: float, text: str) -> None:
        """A label beside a mark."""
        places = [Place((x, y), (dx, dy), side, "baseline") for dx, dy, side in BESIDE]
        self._wait(text, places, self.axes.transData)

    def level(self, value: float, text: str) -> None:
        """A label along a horizontal line: above or below it, at the right, at the left or in the middle."""
        sides = [(1.0, "right"), (0.0, "left"), (0.5, "center")]
        places = [Place((x, value), (0, dy), side, vertical) for x, side in sides for dy, vertical in ALONG]
        self._wait(text, places, self.axes.get_yaxis_transform())

    def _wait(self, text: str, places: list[Place], transform: object) -> None:
        note = self.axes.annotate(text, places[0].at, (0, 0), xycoords=transform, textcoords="offset points")  # type: ignore[arg-type]
        note.set(color=MUTED, fontsize=self.size, parse_math=False, zorder=6, in_layout=False)
        self.waiting.append((note, places))

    def place(self) -> list[Bbox]:
        """Puts each label where it hides the fewest points of curves, and no other label; returns their boxes."""
        figure = self.axes.get_figure(root=True)
        assert figure is not None
        figure.draw_without_rendering()  # the layout
        points, taken = self._points(), list[Bbox]()
        for note, places in self.waiting:
            boxes = [_put(note, place) for place in places]
            best = int(np.argmin([_cost(box, points, taken, figure.bbox) for box in boxes]))
            taken.append(_put(note, places[best]))
        for note, _ in self.waiting:
            note.set_fontsize(SIZE)
        return taken

    def _points(self) -> NDArray[np.float64]:
        """Points of all lines and marks, in pixels, [N, 2]."""
        found = [np.zeros((0, 2))]
        for line in self.axes.get_lines():
            pixels = line.get_transform().transform(np.asarray(line.get_xydata(), dtype=np.float64))
            pixels = pixels[np.isfinite(pixels).all(axis=1)]
            found.append(pixels)
            for start, end in itertools.pairwise(pixels):
                count = int(np.hypot(*(end - start)) / STEP) + 2
                found.append(np.linspace(start, end, count))
        return np.concatenate(found)


def _put(note: Annotation, place: Place) -> Bbox:
    note.xy = place.at
    note.set_position(place.offset)
    note.set(ha=place.horizontal, va=place.vertical)
    return note.get_window_extent()


def _cost(box: Bbox, points: NDArray[np.float64], taken: Sequence[Bbox], whole: BboxBase) -> float:
    """What a label in a box hides, in points of curves; another label counts more than any curve."""
    inside = int(((points >= (box.x0, box.y0)) & (points <= (box.x1, box.y1))).all(axis=1).sum())
    beyond = box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1
    overlapped = sum(bool(box.overlaps(other)) for other in taken)
    return float(inside + 1e4 * (overlapped + beyond))
