"""Texts of runs as the page shows them: control characters are escapes, which keep their own writing direction."""

from __future__ import annotations

import re

from textenv.data import printable

ISOLATE, END = "\N{LEFT-TO-RIGHT ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}"
RUNS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")  # of control characters


def shown(text: object) -> str:
    """Returns a text with escapes; line feeds and tabs are kept. In a line that is written from the right too, an
    escape is read from the left."""
    return RUNS.sub(lambda found: f"{ISOLATE}{printable(found[0])}{END}", str(text))
