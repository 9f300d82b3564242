"""Reward functions as users give them: functions, or sequence classifiers, which become a `RewardModel`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike
from typing import Any

from textenv.arguments import is_scalar, shown


def as_functions(given: Any, name: str = "reward") -> tuple[Any, ...]:
    """One reward function or several as a tuple.

    Args:
        given: a function, a classifier, the path or hub id of one, or several of them.
        name: the name of the argument in error messages.

    Raises:
        TypeError: something else, or none at all.
        ValueError: a model that is no classifier, or whose tokenizer is not known.
    """
    several = not (callable(given) or isinstance(given, str | PathLike | Mapping)) and not is_scalar(given)
    functions = tuple(as_function(each, name) for each in given) if several else (as_function(given, name),)
    if not functions:
        raise TypeError(f"{name} must be a reward function or a list of them, got {shown(given)}.")
    return functions


def as_function(given: object, name: str = "reward") -> Any:
    """A reward function; see `as_functions`."""
    if isinstance(given, str | PathLike):
        from textenv.rewards.classifier import RewardModel

        try:
            return RewardModel(given)
        except ValueError as error:
            raise ValueError(
                f"{name} must be a function, a sequence classifier, or the path or hub id of one, got {shown(given)}: "
                f"{error}"
            ) from error
    if _is_model(given):
        from textenv.rewards.classifier import with_own_tokenizer

        return with_own_tokenizer(given, name)
    if not callable(given) or isinstance(given, type):
        raise TypeError(
            f"{name} must be a function (prompts, completions, completion_ids, **columns) -> list[float | None], a "
            f"sequence classifier, or a list of them, got {shown(given)}."
        )
    return given


def _is_model(given: object) -> bool:
    """Whether it is a model of transformers, compiled or adapted ones included; without an import of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(given, torch.nn.Module) and hasattr(given, "config")
