"""Checks of the actions of a step."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.arguments import array_type, integer_array, shown
from textenv.state import Array


class InvalidAction(gym.error.InvalidAction, ValueError):
    """An action that is not a token id, or a token to which the reference gives probability zero."""


def validate_actions(actions: object, vocab_size: int, idle: Array, num: int) -> NDArray[np.int64]:
    """`actions` as int64 [num], 0 in the rows `idle`, whose actions are ignored.

    Raises:
        InvalidAction: the others are no token ids, integers in 0 .. V-1.
    """
    given = integer_array(actions)
    if given is None or given.shape != (num,):
        raise InvalidAction(
            f"Expected {num} integer token ids, got {shown(actions)}{array_type(actions)}; each must be in "
            f"0 .. {vocab_size - 1}."
        )
    tokens = given.astype(np.int64)
    if len(idle):
        tokens[idle] = 0
    if tokens.view(np.uint64).max() >= vocab_size:  # as unsigned, negative ids are large
        bad = given[np.flatnonzero((tokens < 0) | (tokens >= vocab_size))[0]]
        raise InvalidAction(f"A token id must be in 0 .. {vocab_size - 1}, got {bad}.")
    return tokens
