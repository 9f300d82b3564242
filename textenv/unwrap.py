"""From an environment to its `TextMDP`."""

from __future__ import annotations

from typing import Protocol

import gymnasium as gym
from gymnasium import wrappers

from textenv.mdp import TextMDP

# Wrappers that change neither observations nor actions nor rewards.
PASSIVE_WRAPPERS = (
    wrappers.OrderEnforcing,
    wrappers.PassiveEnvChecker,
    wrappers.RecordEpisodeStatistics,
    wrappers.RenderCollection,
    wrappers.vector.RecordEpisodeStatistics,
)


class EnvLike(Protocol):
    """An environment as Gymnasium's wrappers show it, single or batched, of textenv or of another library."""

    @property
    def unwrapped(self) -> object: ...


def get_mdp(env: EnvLike | TextMDP) -> TextMDP:
    """The MDP of an environment, or `env` itself if it is a `TextMDP`.

    Raises:
        TypeError: not one of textenv's environments, or in a wrapper that may change its MDP.
    """
    mdp = env if isinstance(env, TextMDP) else getattr(getattr(env, "unwrapped", env), "mdp", None)
    if not isinstance(mdp, TextMDP):
        raise TypeError(
            "Expected an environment of textenv (gym.make('textenv/...'), or gym.make_vec without a "
            f"vectorization_mode), got {type(env).__name__}. "
            "(Agents also take a single environment of another library: see agents/README.md.)"
        )
    wrapper: object = env
    while isinstance(wrapper, gym.Wrapper | gym.vector.VectorWrapper):
        if not isinstance(wrapper, PASSIVE_WRAPPERS):
            if reason := getattr(type(wrapper), "no_mdp", None):
                raise TypeError(reason)
            raise TypeError(
                f"{type(wrapper).__name__} may change observations, actions or rewards, which agents and the oracle "
                "would miss, as they use the environment's MDP: put the change into the task (reward=, shaping=, "
                "max_new_tokens=), or pass the bare environment."
            )
        wrapper = wrapper.env
    return mdp
