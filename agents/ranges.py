"""The type and the range of every setting, of our agents and of others with settings of the same names.

A setting is refused where no run can make sense of it: infinite or nan, of another type, or so large that float32
overflows or memory ends. Limits are generous. What is merely unwise is allowed, and warned about in training
(`agents.training.health`).
"""

from __future__ import annotations

import operator
from contextlib import suppress
from dataclasses import fields
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np

from textenv.arguments import check_count, is_number

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

LARGEST = 1e30  # of a float; its products with numbers of ordinary size are finite in float32
MOST = 2**31 - 1  # of an integer
MOST_TIMESTEPS = 10**15  # tokens of a training


class Range(NamedTuple):
    """The values that a setting may have, both ends included."""

    low: float
    high: float


# By the name of the setting. A number that is not in the table must be of its type, and in [-LARGEST, LARGEST].
RANGES: dict[str, Range] = {
    "learning_rate": Range(0, 1e12),
    "vf_learning_rate": Range(0, 1e12),
    "lr_warmup": Range(0, MOST),
    "n_episodes": Range(1, 1_000_000),
    "num_generations": Range(1, 1_000_000),
    "num_continuations": Range(1, 10_000),
    "n_steps": Range(1, 1_000_000),
    "n_epochs": Range(1, 10_000),
    "replay_size": Range(1, 1_000_000),
    "batch_size": Range(1, MOST),
    "micro_batch_size": Range(1, MOST),
    "gamma": Range(0, 1),
    "gae_lambda": Range(0, 1),
    "max_grad_norm": Range(1e-12, 1e15),  # Adam squares the gradient
    "vf_coef": Range(0, 1e9),
    "value_warmup": Range(0, MOST),
    "clip_range": Range(0, 1e6),
    "clip_range_high": Range(0, 1e6),
    "clip_range_vf": Range(0, LARGEST),
    "target_kl": Range(0, 1e6),
    "kl_target": Range(1e-12, 1e6),
    "kl_horizon": Range(1, 10**12),
    "sampler_cap": Range(1, LARGEST),
    "seed": Range(0, 2**63 - 1),
}


def check_range(name: str, value: float | None, low: float, high: float = LARGEST) -> None:
    """Raises a ValueError that names the setting unless its value is None or a number in [low, high]."""
    if value is None:
        return
    if not is_number(value):
        raise ValueError(f"{name} must be a number, got {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}.")


def check_integer(name: str, value: object, low: int, high: int = MOST) -> int:
    """Returns an integer of any kind as Python's.

    Raises:
        ValueError: not an integer (bool is none), or out of range.
    """
    if not is_number(value) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {value!r}.")
    number = operator.index(value)
    check_range(name, number, low, high)
    return number


def check_timesteps(total_timesteps: object) -> int:
    """Returns the `total_timesteps` of `learn` as Python's integer; 2e5 is one.

    Raises:
        ValueError: no whole number, or out of range.
    """
    return check_count("total_timesteps", total_timesteps, 0, MOST_TIMESTEPS)


def check_fields(settings: DataclassInstance) -> None:
    """Checks every field of a dataclass that is an int, a float, a bool or a Literal, or one of them or None.

    NumPy's numbers are replaced by Python's, so that they can be saved. A number may also be a function where the
    field's type says so.

    Raises:
        ValueError: another type, a value outside `RANGES`, or one that a Literal does not have; the message has the
            name, the rule and the value.
    """
    literals = _literals(type(settings))
    for f in fields(settings):
        kinds = _kinds(f.type)
        value = getattr(settings, f.name)
        if f.name in literals:
            if not any(isinstance(value, type(each)) and value == each for each in literals[f.name]):
                allowed = ", ".join(map(str, literals[f.name]))
                raise ValueError(f"{f.name} must be one of {allowed}, got {value!r}.")
            continue
        if not kinds & {"int", "float", "bool"} or (value is None and "None" in kinds):
            continue
        if callable(value) and any(kind.startswith("Callable") for kind in kinds):
            continue
        setattr(settings, f.name, _checked(f.name, value, kinds))


def _literals(kind: type) -> dict[str, tuple[object, ...]]:
    """The values of each annotated name of a class that is a Literal, or a Literal or None."""
    hints: dict[str, object] = {}
    for each in reversed(kind.__mro__):
        # a class may have annotations that only a type checker can read: the Literals of its bases are known
        with suppress(NameError, AttributeError, TypeError):
            hints |= get_type_hints(each)
    parts = {
        name: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,) for name, hint in hints.items()
    }
    return {
        name: tuple(value for part in found for value in get_args(part) or (None,))
        for name, found in parts.items()
        if any(get_origin(part) is Literal for part in found)
        and all(part is type(None) or get_origin(part) is Literal for part in found)
    }


def _kinds(annotation: object) -> set[str]:
    """The names of the types of an annotation such as `int | None`, which may be a string."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return {part.strip() for part in text.split("|")}


def _checked(name: str, value: Any, kinds: set[str]) -> int | float | bool:
    if "bool" in kinds:
        if not isinstance(value, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {value!r}.")
        return bool(value)
    if value is None:
        raise ValueError(f"{name} must be a number, got None.")
    low, high = RANGES.get(name, Range(-LARGEST, LARGEST))
    if "float" not in kinds:
        return check_integer(name, value, int(low), int(high))
    check_range(name, value, low, high)
    return float(value)
