"""From an environment to the process that it steps through."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from textenv.process import TextProcess

CHANGING_WRAPPERS = (
    gym.RewardWrapper,
    gym.ObservationWrapper,
    gym.ActionWrapper,
    gym.vector.VectorRewardWrapper,
    gym.vector.VectorObservationWrapper,
    gym.vector.VectorActionWrapper,
)


def _spaces(env: Any) -> tuple[Any, Any]:
    return env.observation_space, env.action_space


def process_of(env: Any) -> TextProcess:
    """The process that an environment steps through.

    Raises:
        TypeError: not one of textenv's environments, or wrapped in something that changes it.
    """
    wrapper = env
    while isinstance(wrapper, gym.Wrapper | gym.vector.VectorWrapper):
        if isinstance(wrapper, CHANGING_WRAPPERS) or _spaces(wrapper) != _spaces(wrapper.env):
            raise TypeError(
                f"{type(wrapper).__name__} changes what the environment says or pays, which agents and oracle, reading "
                "its process, would not see: put it into the task (reward=, shaping=), or pass the bare environment."
            )
        wrapper = wrapper.env
    process = env if isinstance(env, TextProcess) else getattr(getattr(env, "unwrapped", env), "process", None)
    if not isinstance(process, TextProcess):
        raise TypeError(
            f"Expected an environment of textenv (gym.make('textenv/...') or gym.make_vec), got {type(env).__name__}. "
            '(Agents also take a single environment of another library, as README\'s "Plug in your agent" says.)'
        )
    return process
