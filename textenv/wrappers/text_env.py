"""From a wrapped single environment to its `TextEnv`, and the wrappers in between."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from textenv.env import TextEnv


def text_env(env: Any) -> TextEnv:
    """The `TextEnv` below all wrappers.

    Raises:
        TypeError: not a single environment of textenv.
    """
    if not isinstance(inner := env.unwrapped, TextEnv):
        raise TypeError(
            f"Expected a single environment of textenv (gym.make('textenv/...')), got {type(inner).__name__}."
        )
    return inner


def layers(env: Any) -> list[Any]:
    """The wrappers of an environment, single or batched, from the outermost to the innermost."""
    found = []
    while isinstance(env, gym.Wrapper | gym.vector.VectorWrapper):
        found.append(env)
        env = env.env
    return found
