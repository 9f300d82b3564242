"""Observations in another form: flat, or with the action mask in them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from textenv.env import Observation
from textenv.state import Array
from textenv.wrappers.text_env import text_env


class FlatTokens(gym.ObservationWrapper[Array, np.int64, Observation], RecordConstructorArgs):
    """The observation as one `MultiDiscrete`: for agents without `Dict` observations, which usually one-hot it.

    Column l holds the token in column l of `input_ids`, or V where there is none: int64 [L], values 0 .. V. Masks are
    unchanged: `info["action_mask"]` and `action_masks()`.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import FlatTokens
    >>> env = FlatTokens(gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3))
    >>> env.reset(options={"prompt": "a", "completion": "b"})[0].tolist()
    [1, 2, 4, 4]
    """

    def __init__(self, env: Any) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        mdp = text_env(env).mdp
        if set(getattr(env.observation_space, "spaces", ())) != {"input_ids", "attention_mask"}:
            raise ValueError(f"FlatTokens needs a Dict of input_ids and attention_mask, got {env.observation_space}.")
        self.padding_value = mdp.vocab_size
        length = mdp.prompt_width + mdp.max_new_tokens
        self.observation_space = spaces.MultiDiscrete(np.full(length, self.padding_value + 1))

    def observation(self, observation: Observation) -> Array:
        """The tokens, and V in columns without one."""
        return np.where(observation["attention_mask"] == 1, observation["input_ids"], self.padding_value)

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        return text_env(self.env).action_masks()


class MaskInObservation(gym.ObservationWrapper[dict[str, Array], np.int64, Observation], RecordConstructorArgs):
    """Adds the action mask to the observation, for libraries whose networks get nothing but the observation.

    int8 [V], 1 where a token is allowed, under the key that the library uses: `action_mask` in RLlib's models, `mask`
    in Tianshou's.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import MaskInObservation
    >>> env = MaskInObservation(gym.make("textenv/TajMahal-v0"), key="mask")
    >>> sorted(env.reset(seed=0)[0])
    ['attention_mask', 'input_ids', 'mask']
    """

    def __init__(self, env: Any, key: str = "action_mask") -> None:
        RecordConstructorArgs.__init__(self, key=key)
        gym.ObservationWrapper.__init__(self, env)
        self.key = key
        mask = spaces.Box(0, 1, (text_env(env).mdp.vocab_size,), np.int8)
        if not isinstance(env.observation_space, spaces.Dict) or key in env.observation_space.spaces:
            raise ValueError(
                f"MaskInObservation adds {key!r} to a Dict without that key, got {env.observation_space}; pass "
                "another key=, or wrap the environment before its observation is made flat."
            )
        self.observation_space: Any = spaces.Dict({**env.observation_space.spaces, key: mask})

    def observation(self, observation: Observation) -> dict[str, Array]:
        """The observation with the mask of the next action."""
        return {**observation, self.key: self.action_masks().astype(np.int8)}

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        return text_env(self.env).action_masks()
