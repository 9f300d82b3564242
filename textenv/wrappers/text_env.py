"""From a wrapped single environment to its `TextEnv`, and the wrappers in between."""

from __future__ import annotations

import gymnasium as gym

from textenv.arguments import shown
from textenv.env import TextEnv


def text_env(env: object) -> TextEnv:
    """The `TextEnv` below all wrappers.

    Raises:
        TypeError: not a single environment of textenv.
    """
    if not isinstance(inner := getattr(env, "unwrapped", None), TextEnv):
        raise TypeError(f"Expected a single environment of textenv (gym.make('textenv/...')), got {kind_of(env)}.")
    return inner


def kind_of(env: object) -> str:
    """The class of an environment below its wrappers, or the value that was passed instead of one, for a message."""
    return type(env.unwrapped).__name__ if isinstance(env, gym.Env | gym.vector.VectorEnv) else shown(env)


def layers(env: object) -> list[gym.Wrapper | gym.vector.VectorWrapper]:
    """The wrappers of an environment, single or batched, from the outermost to the innermost."""
    found = []
    while isinstance(env, gym.Wrapper | gym.vector.VectorWrapper):
        found.append(env)
        env = env.env
    return found
