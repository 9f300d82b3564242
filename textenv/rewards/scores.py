"""What a reward function returns, checked once: a number or None for each completion."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Set
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import shown

FLOAT32_MAX = float(np.finfo(np.float32).max)  # agents compute in float32, where a larger number is inf
NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)  # though Python can iterate over them
PLAIN_TYPES = {float, int, bool, type(None)}
NUMBER_KINDS = set("biufO")  # numpy's kinds of dtypes: booleans, integers, floats, objects


class Scores(NamedTuple):
    """The scores of one function, [B] each.

    Attributes:
        values: float64; 0 where the function returned None. Not yet checked to be finite.
        none: bool, whether the function returned None: it does not apply to this completion. None where it applies to
            all of them.
    """

    values: NDArray[np.float64]
    none: NDArray[np.bool_] | None

    def select(self, row: int) -> Scores:
        """One of the scores alone."""
        return Scores(self.values[row : row + 1], None if self.none is None else self.none[row : row + 1])


class NotScores(Exception):
    """A returned value that is no list of numbers or None; the message is the rule and the value."""


def is_finite(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether numbers are finite in float32."""
    finite: NDArray[np.bool_] = np.abs(values) <= FLOAT32_MAX  # False for nan
    return finite


def all_finite(values: NDArray[np.float64]) -> bool:
    """Whether all numbers are finite in float32; cheaper than `is_finite`, for every step of an environment."""
    return bool(np.maximum.reduce(np.abs(values), initial=0.0) <= FLOAT32_MAX)  # False for nan


def not_finite(value: float) -> str:
    """The rule that a number breaks, and the number."""
    limit = f" (float32 ends at {FLOAT32_MAX:.1e})" if np.isfinite(value) else ""
    return f"must return finite numbers, got {value}{limit}"


def read_scores(returned: object, count: int) -> Scores:
    """`Scores` from `count` numbers or None: a list, a generator or another iterable, or an array or tensor [B].

    Booleans are numbers, and so are arrays and tensors of one element; strings, bytes, complex numbers, and lists in
    the list are not. Mappings and sets are no lists: their order is not that of the completions.

    Raises:
        NotScores: anything else.
    """
    if returned is None:
        raise NotScores("must return one score per completion, got None: no return?")
    if type(returned) is np.ndarray and returned.ndim == 1 and returned.dtype.kind == "f":
        _check_length(returned, count)
        return Scores(returned.astype(np.float64, copy=False), None)
    rule = "must return a list of numbers or None, one per completion"
    if (items := _items(returned, count)) is None:
        raise NotScores(f"{rule}, got {shown(returned)} ({type(returned).__name__})")
    _check_length(items, count)
    if not set(map(type, items)) <= PLAIN_TYPES:
        given, items = items, [_plain(item) for item in items]
        if bad := [i for i, item in enumerate(items) if item is NotImplemented]:
            raise NotScores(f"{rule}, got {shown(given[bad[0]])} in {shown(given)}")
    none = np.array([item is None for item in items], dtype=np.bool_) if None in items else None
    filled = [0.0 if item is None else item for item in items]
    try:
        return Scores(np.array(filled, dtype=np.float64), none)
    except OverflowError:  # an int or a fraction that is too large for a float
        return Scores(np.array([_as_float(item) for item in filled]), none)


def _items(returned: Any, count: int) -> list[Any] | None:
    """The members of what a function returned, in order; None if it has none, or no order."""
    if isinstance(returned, list | tuple):
        return list(returned)
    if isinstance(returned, NO_LISTS):
        return None
    if hasattr(returned, "ndim"):  # a numpy array, a torch tensor, a pandas column
        if _kind(returned) not in NUMBER_KINDS or not hasattr(returned, "tolist"):
            return None
        if returned.ndim == 2 and returned.shape[1] == 1 and not isinstance(returned, np.ndarray):
            returned = returned[:, 0]  # TRL takes a tensor [B, 1], but no array of numpy [B, 1]
        return list(returned.tolist()) if returned.ndim == 1 else None
    try:
        iterator = iter(returned)
    except TypeError:
        return None
    items = list(islice(iterator, count + 1))  # a generator may have no end
    if len(items) > count:
        raise NotScores(f"must return one score per completion: {count}, got more")
    return items


def _check_length(scores: Any, count: int) -> None:
    if len(scores) != count:
        raise NotScores(f"must return one score per completion: {count}, got {len(scores)}")


def _kind(value: object) -> str:
    """numpy's kind of an array or scalar; "f" for a tensor, whose dtype has none; empty for what has no dtype."""
    return str(getattr(value.dtype, "kind", "f")) if hasattr(value, "dtype") else ""


def _plain(item: Any) -> Any:
    """None as it is; a number of numpy, torch or the standard library, or one in an array, as Python's.

    NotImplemented for anything else.
    """
    if (kind := _kind(item)) and kind not in NUMBER_KINDS:
        return NotImplemented  # a timedelta64 would become an int
    if kind and isinstance(shape := getattr(item, "shape", None), tuple) and math.prod(shape) == 1:
        item = item.item()
    return item if item is None or isinstance(item, numbers.Real) else NotImplemented


def as_number(value: object) -> float | None:
    """A number of numpy, torch or the standard library as a float; None for anything else: "1.0" is no number."""
    plain = _plain(value)
    return None if plain is None or plain is NotImplemented else _as_float(plain)


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf") if number > 0 else -float("inf")
