"""Texts in the source of a reward function: a policy may find one that the reward looks for, and samples show none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType

from textenv.rewards import RewardFunction

MOST, LONGEST, DEEPEST = 64, 60, 6
# the parts of a regular expression
PART = re.compile(
    r"""\\(?P<escape>.)
    | \[(?P<set>(?:\\.|[^\]\\])+)\]
    | \{(?P<least>\d*),?\d*\}
    | (?P<repeat>[*+?]\??)
    | (?P<nothing>\(\?[a-z]+\) | \(\?(?:[:=!]|P?<[\w=!]+>?) | [()^$])
    | (?P<any>\.)
    | (?P<plain>.)""",
    re.VERBOSE | re.DOTALL,
)
CLASSES = {"d": "7", "w": "a", "s": " ", "n": "\n"} | dict.fromkeys("bBAZ", "")


def literals_of(function: RewardFunction) -> list[str]:
    """The short texts that a function's code, its closure, its globals and its attributes hold, without its docstring.

    Of a text that is a regular expression also one that matches it. A `RewardModel` looks for no text: none are taken
    of its code.
    """
    if type(function).__module__.startswith("textenv.rewards"):
        return []
    found = dict.fromkeys(text for text in _texts(function, 0, set()) if 0 < len(text.strip()) <= LONGEST)
    matching = [match for text in found for match in _matches(text)]
    return list(dict.fromkeys([*matching, *found]))[:MOST]


def _texts(value: object, depth: int, seen: set[int]) -> Iterator[str]:
    """The texts that a value holds or refers to; other objects than functions and containers are not searched."""
    if depth > DEEPEST or id(value) in seen:
        return
    if isinstance(value, str):
        yield value
        return
    seen.add(id(value))
    for part in _parts(value):
        yield from _texts(part, depth + 1, seen)


def _parts(value: object) -> list[object]:
    """What a value consists of or refers to."""
    if isinstance(value, re.Pattern):
        return [value.pattern]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()][: 4 * MOST]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[: 4 * MOST]
    if isinstance(value, FunctionType):
        codes = list(_codes(value.__code__))
        consts = [const for code in codes for const in code.co_consts if const != value.__doc__]
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]  # without unset ones
        known = [value.__globals__.get(name) for code in codes for name in code.co_names]
        return [*consts, *cells, *filter(_is_searched, known)]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if callable(value) and isinstance(value.__call__, MethodType):  # an object of a class with `__call__`
        return [value.__call__.__func__, *filter(_is_searched, getattr(value, "__dict__", {}).values())]
    return []


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function, and of the functions inside of it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from _codes(const)


def _is_searched(value: object) -> bool:
    return isinstance(value, str | dict | list | tuple | set | frozenset | re.Pattern | FunctionType)


def _matches(pattern: str) -> list[str]:
    """Simple texts that match a regular expression, one of each alternative; none for a text that is no expression."""
    found, pieces = list[str](), list[str]()
    for part in PART.finditer(pattern):
        if part["plain"] == "|":
            found.append("".join(pieces))
            pieces = []
        elif part["least"] and pieces:
            pieces[-1] *= max(1, int(part["least"]))
        else:
            pieces.append(_simplest(part))
    try:
        return [text for text in [*found, "".join(pieces)] if text != pattern and re.search(pattern, text)]
    except (re.error, OverflowError, RecursionError):
        return []


def _simplest(part: re.Match[str]) -> str:
    """The simplest text of a part; what is more than simple will not match, and is left out."""
    if part["escape"]:
        return CLASSES.get(part["escape"], part["escape"])
    if first := (part["set"] or "")[:2]:
        return CLASSES.get(first[1:], first[1:]) if first[0] == "\\" else first[0]
    return part["plain"] or ("a" if part["any"] else "")
