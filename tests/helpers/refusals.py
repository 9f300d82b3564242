"""Wrong arguments of every kind, and what an error of ours is."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from tests.helpers.paths import ROOT

# One of each type and size that an argument may be given by mistake.
ODD: list[Any] = [
    *(True, False, np.True_, 1.0, 1.5, -0.0, float("nan"), float("inf"), -float("inf"), 1e22, 1e308, 1j),
    *(-1, 2**63, 2**64, 2**200, -(2**200), np.int8(-1), np.float64(1.0), np.datetime64("2020"), np.str_("a")),
    *("", "1", "a", "\0", "\ud800", b"1", bytearray(b"1"), object(), int, len, ..., NotImplemented),
    *([], (), {}, set(), {0: 1}, {1, 2}, [None], ["a"], [1.0], [True], [[1]], [[1], [1, 2]], [1, [2]], [2**200], [-1]),
    *([1, "a"], [1, None], [float("nan")], [{}], [b"1"], [1j], range(2), iter([1]), {"prompt": 0}, [{"role": "user"}]),
    *(np.array(1.0), np.array([]), np.array([True]), np.array([1.5]), np.array([[1]]), np.array([1, None])),
    *(np.array(["a"]), np.array([2**64 - 1], dtype=np.uint64), np.zeros((0, 3)), np.array([1], dtype="m8")),
    *(torch.tensor(1.0), torch.tensor([1.0], requires_grad=True), torch.tensor([True]), torch.tensor([[1]])),
]


def odd_values() -> st.SearchStrategy[Any]:
    """Any of these, and random scalars and lists."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3)
    nested = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
    return st.sampled_from(ODD) | nested


class NotRefused(AssertionError):
    """The block raised nothing."""


@contextmanager
def refused(
    kind: type[Exception] | tuple[type[Exception], ...] = (ValueError, TypeError),
    match: str = "",
    package: str = "textenv",
) -> Iterator[None]:
    """Asserts that its block raises an error of ours, by default a ValueError or TypeError.

    A line of the package raises it, not a library, and its message has one line that `match` is found in.
    """
    try:
        yield
    except kind as error:
        frames = traceback.extract_tb(error.__traceback__)
        assert Path(frames[-1].filename).is_relative_to(ROOT / package), f"raised in {frames[-1]}: {error}"
        assert str(error) and "\n" not in str(error), repr(str(error))
        assert re.search(match, str(error)), str(error)
        return
    raise NotRefused("nothing was raised")
