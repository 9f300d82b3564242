"""Texts in the source of a reward function: a policy may find one that the reward looks for, and samples show none."""

from __future__ import annotations

import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType

from textenv.rewards import RewardFunction

MOST, LONGEST, DEEPEST = 64, 60, 7
LIBRARIES = (*(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")), "<frozen")
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
    if is_reward_model(function):
        return []
    found = dict.fromkeys(text for text in _texts(function) if 0 < len(text.strip()) <= LONGEST)
    matching = [match for text in found for match in _matches(text)]
    return list(dict.fromkeys([*matching, *found]))[:MOST]


def is_reward_model(function: RewardFunction) -> bool:
    """Whether it is a `RewardModel`; the core has no torch to import its class with."""
    return type(function).__module__.startswith("textenv.rewards")


def _texts(function: object) -> Iterator[str]:
    """The texts that a function holds or refers to, the nearest first, so that its own come before those of helpers.

    Other objects than functions and containers are not searched.
    """
    seen, level = set[int](), [function]
    for _ in range(DEEPEST):
        found = [part for value in level for part in _parts(value)]
        yield from (part for part in found if isinstance(part, str))
        level = list({id(part): part for part in found if not isinstance(part, str) and id(part) not in seen}.values())
        seen |= set(map(id, level))


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
        return [*consts, *cells, *(each for each in known if _is_searched(each) and _is_own(value, each))]
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


def _is_own(function: FunctionType, other: object) -> bool:
    """Whether a global is the reward's: a function of another package that is installed is a library's."""
    if not isinstance(other, FunctionType):
        return True
    package, others = (str(each.__module__).partition(".")[0] for each in (function, other))
    return package == others or not other.__code__.co_filename.startswith(LIBRARIES)


def _matches(pattern: str) -> list[str]:
    """Simple texts that match a regular expression, one of each alternative; none for a text that is no expression."""
    texts = [text for text in _alternatives(pattern) if text != pattern and len(text) <= LONGEST]
    try:
        with warnings.catch_warnings():  # of an expression that another version of Python reads otherwise
            warnings.simplefilter("ignore")
            return [text for text in texts if re.search(pattern, text)]
    except (re.error, OverflowError, RecursionError):
        return []


def _alternatives(pattern: str) -> list[str]:
    """The simplest text of each alternative of a regular expression."""
    found, pieces = list[str](), list[str]()
    for part in PART.finditer(pattern):
        if part["plain"] == "|":
            found.append("".join(pieces))
            pieces = []
        elif part["least"] and pieces:
            pieces[-1] *= min(max(1, int(part["least"])), LONGEST + 1)
        else:
            pieces.append(_simplest(part))
    return [*found, "".join(pieces)]


def _simplest(part: re.Match[str]) -> str:
    """The simplest text of a part; what is more than simple will not match, and is left out."""
    if part["escape"]:
        return CLASSES.get(part["escape"], part["escape"])
    if first := (part["set"] or "")[:2]:
        return CLASSES.get(first[1:], first[1:]) if first[0] == "\\" else first[0]
    return part["plain"] or ("a" if part["any"] else "")
