"""From an environment to the process that it steps through."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium import wrappers

from textenv.mdp import TextMDP

# What watches an environment and changes nothing that it says or pays.
WATCHING_WRAPPERS = (
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RenderCollection,
    wrappers.vector.RecordEpisodeStatistics,
)


def get_mdp(env: Any) -> TextMDP:
    """The process that an environment steps through.

    Raises:
        TypeError: not one of textenv's environments, or in a wrapper that may change it.
    """
    mdp = env if isinstance(env, TextMDP) else getattr(getattr(env, "unwrapped", env), "mdp", None)
    if not isinstance(mdp, TextMDP):
        raise TypeError(
            "Expected an environment of textenv (gym.make('textenv/...'), or gym.make_vec without a "
            f"vectorization_mode), got {type(env).__name__}. "
            '(Agents also take a single environment of another library, as README\'s "Plug in your agent" says.)'
        )
    wrapper = env
    while isinstance(wrapper, gym.Wrapper | gym.vector.VectorWrapper):
        if not isinstance(wrapper, WATCHING_WRAPPERS):
            raise TypeError(
                f"{type(wrapper).__name__} may change what the environment says or pays, which agents and oracle, "
                "reading its process, would not see: put it into the task (reward=, shaping=, max_new_tokens=), or "
                "pass the bare environment."
            )
        wrapper = wrapper.env
    return mdp
