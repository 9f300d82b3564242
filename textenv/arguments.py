"""Checks of the arguments of `reset` and `step`, before anything changes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from textenv.state import Array

Seeds = int | list[int | None] | None

SMALLEST_KL_COEF = 1e-30  # a score divided by it is finite
LONGEST_SHOWN = 200  # characters of a refused value in a message


def shown(value: object) -> str:
    """`repr` of a refused value, on one line, with its middle left out where it is long."""
    text = " ".join(repr(value).split())
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]} ... {text[-half:]}"


def integer_array(values: object) -> Array | None:
    """`values` as an array of integers, of any shape; None if it holds anything else (booleans, 1.0, ragged lists)."""
    if isinstance(values, bytes | bytearray | memoryview):  # numpy would take their codes
        return None
    try:
        array = np.asarray(values)
    except Exception:  # numpy's own errors, and those of a tensor that cannot become an array
        return None
    if array.shape == (0,):  # numpy's empty arrays are of floats
        return array.astype(np.int64)
    if isinstance(values, list | tuple) and any(isinstance(value, bool | np.bool_) for value in values):
        return None  # numpy would take [True, 2] as integers
    return array if array.dtype.kind in "iu" else None


def is_scalar(value: Any) -> bool:
    """Whether numpy makes an array without dimensions of it."""
    if isinstance(value, int | float | np.generic):  # np.ndim is slower
        return True
    try:
        return np.ndim(value) == 0
    except Exception:
        return False


def array_type(values: object) -> str:
    """Dtype and shape of what numpy makes of `values`, in parentheses, for a message; empty where it cannot."""
    try:
        array = np.asarray(values)
    except Exception:
        return ""
    return f" ({array.dtype}{array.shape})"


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number of Python's or numpy's, and no boolean."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def takes_arguments(function: object, num: int) -> bool:
    """Whether a function, or an object that can be called, takes `num` positional arguments; False for a class."""
    if not callable(function) or isinstance(function, type):
        return False
    try:
        inspect.signature(function).bind(*range(num))
    except TypeError:
        return False
    except ValueError:  # it has no signature, as some functions in C
        return True
    return True


def check_count(name: str, value: object, low: int = 1, high: int = 2**24) -> int:
    """A whole number in low .. high, as Python's int; 4.0 is one.

    Raises:
        ValueError: it is another number, or none.
    """
    if not is_number(value) or not low <= value or value != value // 1:  # a nan is not equal to itself
        raise ValueError(f"{name} must be a whole number, at least {low}, got {shown(value)}.")
    if value > high:
        raise ValueError(f"{name} must be a whole number, at most {high}, got {shown(value)}.")
    return int(value)


def check_kl_coef(kl_coef: Any) -> float:
    """beta, the weight of the KL: 0, or a number that is neither too small to divide by nor infinite in float32.

    Raises:
        ValueError: it is something else.
    """
    largest = float(np.finfo(np.float32).max)
    if not is_number(kl_coef) or (kl_coef != 0 and not SMALLEST_KL_COEF <= kl_coef <= largest):
        raise ValueError(
            f"kl_coef (beta) must be finite in float32, >= 0, got {shown(kl_coef)}; 0 switches the KL off, and the "
            f"smallest other value is {SMALLEST_KL_COEF:g}."
        )
    return float(kl_coef)


def check_text(text: str) -> None:
    """Raises a ValueError unless the text is valid Unicode, which tokenizers refuse with errors of their own."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"A text must be valid Unicode, got the lone surrogate {text[error.start]!r} in {shown(text)}."
        ) from None


def check_seed(seed: object) -> int | None:
    """A seed as Python's int.

    Raises:
        ValueError: it is neither None nor an integer >= 0.
    """
    if seed is None:
        return None
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"A seed must be an integer >= 0, or None for a random one, got {shown(seed)}.")
    return int(seed)


def check_seeds(seed: Any, num_envs: int) -> Seeds:
    """One seed, or a list with one of each row, as Python's ints; None keeps a row's stream.

    Raises:
        ValueError: a seed is neither None nor an integer >= 0, or the list has another length than the batch.
    """
    if isinstance(seed, str | bytes) or not (isinstance(seed, Sequence) or getattr(seed, "ndim", 0) == 1):
        return check_seed(seed)
    if len(seed) != num_envs:
        raise ValueError(f"A list of seeds must have one per row: {num_envs}, got {len(seed)}.")
    return [check_seed(each) for each in seed]


def check_options(options: object, *batch_options: str) -> dict[str, object]:
    """The options of `reset` as a new dict, empty where they are None.

    Args:
        options: what `reset` was given.
        batch_options: the keys that only a batch has.

    Raises:
        ValueError: they are no dict, or have an unknown key.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ValueError(f"reset's options must be a dict or None, got {shown(options)}.")
    if unknown := set(options) - {"prompt", "completion", *batch_options}:
        also = f"; a batch also has {', '.join(map(repr, batch_options))}" if batch_options else ""
        raise ValueError(f"reset's options are 'prompt' and 'completion', got {sorted(map(str, unknown))}{also}.")
    return dict(options)


def check_reset_mask(mask: object, num_envs: int) -> NDArray[np.bool_]:
    """The rows to reset, bool [B]; all of them where the mask is None.

    Raises:
        ValueError: it is no bool array of that shape, or True nowhere.
    """
    if mask is None:
        return np.ones(num_envs, dtype=np.bool_)
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(f"options['reset_mask'] must be a bool array of shape ({num_envs},), got {shown(mask)}.")
    if not mask.any():
        raise ValueError("options['reset_mask'] must be True in at least one row, got none.")
    return mask
