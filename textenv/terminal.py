"""Colours in a terminal, where it has them."""

from __future__ import annotations

import os
from typing import TextIO

# the blue and the orange of `textenv.html`, in the palette of 256 colours
BLUE, ORANGE, FAINT, RESET = "\x1b[38;5;33m", "\x1b[38;5;166m", "\x1b[2m", "\x1b[0m"


def has_colours(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal that shows colours, and the user has not set NO_COLOR (https://no-color.org)."""
    is_terminal = getattr(stream, "isatty", None)  # a program may put anything in the place of sys.stdout, or None
    return bool(is_terminal and is_terminal()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def signed(text: str, value: float, colours: bool) -> str:
    """`text`, blue where `value` is positive, orange where it is negative, faint where it is 0, if there are colours.

    `text` must hold no control characters (`textenv.data.printable`).
    """
    if not colours or value != value:
        return text
    return f"{BLUE if value > 0 else ORANGE if value < 0 else FAINT}{text}{RESET}"
