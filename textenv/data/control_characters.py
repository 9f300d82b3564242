"""Shows any text on a screen: control characters are written as escapes, so that no text commands the terminal."""

from __future__ import annotations

import re

# C0 and C1 controls and DEL; line and paragraph separators; embeddings, overrides and isolates of the writing
# direction; lone surrogates
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def printable(text: object, *, lines: bool = False) -> str:
    r"""Returns `str(text)` with each control character as its escape; all other characters are unchanged.

    Args:
        text: the text.
        lines: whether line feeds and tabs are kept, for text of several lines.

    >>> printable("a\x1b[31mb\nc")
    'a\\x1b[31mb\\nc'
    """
    return CONTROLS.sub(lambda found: found[0] if lines and found[0] in "\n\t" else _escape(found[0]), str(text))


def _escape(character: str) -> str:
    code = ord(character)
    return SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
