"""Texts in the source of a reward function: a policy may find one that the reward looks for, and samples show none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType

from textenv.rewards import RewardFunction

MOST, LONGEST, DEEPEST = 64, 60, 6
# the simplest text for each part of a regular expression; what is not simple does not match, and is left out
SIMPLEST = [
    (r"\[(?!\^)\\?([^\]\\]|\\.)[^\]]*\]", r"\1"),  # a set: its first character
    (r"(?<!\\)[*?]\??|(?<!\\)\{\d*,?\d*\}|(?<!\\)\+\??", ""),  # repeated: once
    (r"\\b|\\B|\\A|\\Z|(?<!\\)[\^$]", ""),
    (r"\(\?[:imsx]+\)?|(?<!\\)[()]", ""),
    (r"\\d", "7"),
    (r"\\w", "a"),
    (r"\\s", " "),
    (r"(?<!\\)\.", "a"),
    (r"\\(.)", r"\1"),
]


def literals_of(function: RewardFunction) -> list[str]:
    """The short texts that a function's code, its closure, its globals and its attributes hold, without its docstring.

    Of a text that is a regular expression also one that matches it.
    """
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
    if isinstance(value, CodeType):
        return list(value.co_consts)
    if isinstance(value, FunctionType):
        consts = [each for each in value.__code__.co_consts if each != value.__doc__]
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]  # without unset ones
        known = value.__globals__
        return [*consts, *cells, *filter(_is_searched, (known.get(name) for name in value.__code__.co_names))]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if callable(value) and isinstance(value.__call__, MethodType):  # an object of a class with `__call__`
        return [value.__call__.__func__, *filter(_is_searched, getattr(value, "__dict__", {}).values())]
    return []


def _is_searched(value: object) -> bool:
    return isinstance(value, str | dict | list | tuple | set | frozenset | re.Pattern | FunctionType)


def _matches(pattern: str) -> list[str]:
    """Texts that match a regular expression, one of each alternative; none for a text that is no expression."""
    found = []
    for part in re.split(r"(?<!\\)\|", pattern):
        text = part
        for expression, simple in SIMPLEST:
            text = re.sub(expression, simple, text)
        try:
            if text != part and re.search(pattern, text):
                found.append(text)
        except (re.error, OverflowError, RecursionError):
            return []
    return found
