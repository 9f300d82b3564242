"""TerminateIllegal: for agents without masks, a masked action ends the episode instead of raising an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from textenv.arguments import is_number, shown
from textenv.stepping import Info
from textenv.vector import TextVectorEnv
from textenv.wrappers.text_env import kind_of, layers, text_env

NO_MDP = (
    "TerminateIllegal is for agents without masks. Agents here obey the masks, and the oracle reads the environment's "
    "MDP, in which no action is illegal: pass the environment that it wraps (env.env)."
)


class TerminateIllegal(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Ends the episode where a masked action is taken, with `illegal_reward` as the reward of that step.

    Then `terminated` is True, `info["finish_reason"]` is "illegal" and `info["reward_terms"]` is
    `{"illegal": illegal_reward}`. The token is not appended, and there is no `score`, `gold_score` or `kl`.
    `ref_log_prob` is -inf. Everything else is as without the wrapper; a number that is no token is an error still.
    A batched environment gets the same in each row, in all autoreset modes.

    Choose an `illegal_reward` below the return of every completion, else to break off can be the best policy.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import TerminateIllegal
    >>> env = TerminateIllegal(gym.make("textenv/TajMahal-v0"), illegal_reward=-2.0)
    >>> observation, info = env.reset(seed=0)
    >>> _, reward, terminated, _, info = env.step(0)  # the end token, which no completion begins with
    >>> reward, terminated, info["finish_reason"], info["reward_terms"]
    (-2.0, True, 'illegal', {'illegal': -2.0})

    Args:
        env: of `gym.make`, or of `gym.make_vec` (the result is then a `VectorTerminateIllegal`).
        illegal_reward: the reward of a masked action.

    Raises:
        TypeError: not an environment of textenv.
        ValueError: `illegal_reward` is not finite in float32, actions are no tokens, or the environment is wrapped
            in `TerminateIllegal` already.
    """

    no_mdp = NO_MDP  # the error of `textenv.get_mdp`

    def __new__(cls, env: Any = None, illegal_reward: Any = None) -> Any:
        """Makes the wrapper of a batched environment where `env` is one; copies are made without arguments."""
        return VectorTerminateIllegal(env, illegal_reward) if isinstance(env, VectorEnv) else super().__new__(cls)

    def __init__(self, env: Any, illegal_reward: float) -> None:
        self.text_env = text_env(env)
        self.illegal_reward = _checked(env, illegal_reward, spaces.Discrete)
        RecordConstructorArgs.__init__(self, illegal_reward=self.illegal_reward)
        gym.Wrapper.__init__(self, env)

    def step(self, action: object) -> tuple[Any, Any, bool, bool, Info]:
        """As the environment's; a masked action ends the episode."""
        with _illegal_actions_end(self.text_env, self.illegal_reward):
            return self.env.step(action)


class VectorTerminateIllegal(VectorWrapper, RecordConstructorArgs):
    """`TerminateIllegal` of a batched environment."""

    no_mdp = NO_MDP

    def __init__(self, env: Any, illegal_reward: float) -> None:
        if not isinstance(inner := getattr(env, "unwrapped", None), TextVectorEnv):
            raise TypeError(
                f"TerminateIllegal needs gym.make_vec('textenv/...') without a vectorization_mode, or a single "
                f"environment, got {kind_of(env)}; wrap each of its environments instead."
            )
        self.text_env = inner
        self.illegal_reward = _checked(env, illegal_reward, spaces.MultiDiscrete)
        RecordConstructorArgs.__init__(self, illegal_reward=self.illegal_reward)
        VectorWrapper.__init__(self, env)

    def step(self, actions: object) -> tuple[Any, Any, Any, Any, Info]:
        """As the environment's; a masked action ends the episode in its row."""
        with _illegal_actions_end(self.text_env, self.illegal_reward):
            return self.env.step(actions)

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """The environment's; TorchRL reads it from the outermost wrapper."""
        return self.text_env.autoreset_mode

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [B, V], which tokens are allowed now: sb3-contrib's convention."""
        return self.text_env.action_masks()


@contextmanager
def _illegal_actions_end(env: Any, illegal_reward: float) -> Iterator[None]:
    """The environment's own step ends the episode, so that wrappers in between see the end."""
    env.illegal_reward = illegal_reward
    try:
        yield
    finally:
        env.illegal_reward = None


def _checked(env: Any, illegal_reward: object, action_space: type) -> float:
    """Returns `illegal_reward` as a float, after checking it and the environment."""
    if not is_number(illegal_reward) or not abs(illegal_reward) <= float(np.finfo(np.float32).max):
        raise ValueError(f"illegal_reward must be a number, finite in float32, got {shown(illegal_reward)}.")
    if not isinstance(env.action_space, action_space):
        raise ValueError(
            f"TerminateIllegal needs an environment whose actions are tokens, got {env.action_space}; wrap the "
            "environment before its actions are changed."
        )
    if any(isinstance(layer, TerminateIllegal | VectorTerminateIllegal) for layer in layers(env)):
        raise ValueError("The environment is wrapped in TerminateIllegal already; wrap it once.")
    return float(illegal_reward)
