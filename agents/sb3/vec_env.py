"""`TextVecEnv`: a batched environment of textenv as a `VecEnv` of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from textenv import InvalidAction, TextVectorEnv


class TextObservationSpace(spaces.Dict):
    """The observation space of `TextVecEnv`, with beta and the state of the policy's half of the KL.

    It is the only object that Stable-Baselines3 passes to both policy and buffer. The buffer reads beta from it. The
    policy reads from it whether a buffer adds its half of the KL.
    """

    def __init__(self, subspaces: dict[str, Any], kl_coef: float) -> None:
        super().__init__(subspaces)
        self.kl_coef = kl_coef
        self.policy_kl_pending = False  # a step was sampled, and no buffer has added its `- beta log pi(a|s)`

    def __eq__(self, other: object) -> bool:
        """Also compares beta: a loaded agent must resume with the beta that it was saved with."""
        return super().__eq__(other) and getattr(other, "kl_coef", self.kl_coef) == self.kl_coef

    def __repr__(self) -> str:
        return f"{super().__repr__()} with kl_coef={self.kl_coef}"


class TextVecEnv(VecEnv):
    """A batched environment of textenv with Stable-Baselines3's `reset` and `step`.

    A row whose episode ends is reset in the same step, so no transition is dead. Its `infos` row then has
    `terminal_observation`, `prompt`, `completion`, `score` and `finish_reason`, besides the keys of every step
    (`action_mask`, `ref_log_prob`, `reward_terms`). `TimeLimit.truncated` is always False: the score is in the reward,
    so nothing is to be bootstrapped.

    It is for training, where a buffer adds the policy's half of the KL. To measure J, call `evaluate_policy` on a
    single environment whose reward has both halves: `gym.make("textenv/...", policy=language_model)`.

    Args:
        envs: of `gym.make_vec(..., autoreset_mode="SameStep")`.
        mask_in_observation: add `action_mask` to the observation, for algorithms without masks (PPO, A2C) whose policy
            applies it, as `CausalLMPolicy` does. MaskablePPO calls `action_masks` instead.

    Raises:
        TypeError: not an unwrapped batched environment of textenv.
        ValueError: another autoreset mode.
    """

    def __init__(self, envs: Any, mask_in_observation: bool = False) -> None:
        inner = getattr(envs, "unwrapped", envs)
        if not isinstance(inner, TextVectorEnv):
            raise TypeError(f"TextVecEnv needs gym.make_vec('textenv/...'), got {type(envs).__name__}.")
        if inner.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"TextVecEnv needs gym.make_vec(..., autoreset_mode='SameStep'), got {inner.autoreset_mode.value!r}: "
                "Stable-Baselines3 would store the dead step of the other modes as a transition."
            )
        if envs is not inner:
            raise TypeError(
                f"TextVecEnv needs the environment without wrappers, which it would bypass, got {type(envs).__name__}: "
                "put it into the task (reward=, shaping=), or around TextVecEnv (VecEnvWrapper)."
            )
        self.envs: TextVectorEnv = inner
        self.mdp = inner.mdp  # for `textenv.get_mdp`
        self.prompts = inner.prompts
        self.mask_in_observation = mask_in_observation
        subspaces = dict(inner.single_observation_space.spaces)
        if mask_in_observation:
            subspaces["action_mask"] = spaces.Box(0, 1, (inner.mdp.vocab_size,), np.int8)
        super().__init__(inner.num_envs, TextObservationSpace(subspaces, inner.mdp.kl_coef), inner.single_action_space)

    def reset(self) -> Any:
        options, seeds = self._options, self._seeds
        self._reset_options()  # for the next reset, also where this one is refused
        self._reset_seeds()
        if any(options):
            raise ValueError(f"TextVecEnv starts at drawn prompts and takes no options, got {options[0]}.")
        observations, info = self.envs.reset(seed=seeds if any(seed is not None for seed in seeds) else None)
        return self._observation(observations, info)

    def step_async(self, actions: Any) -> None:
        if self.envs.episodes.policy is not None:
            raise ValueError(
                "With a bound policy the environment's reward has the KL that KLRewardBuffer adds too: call "
                "bind_policy(None). To evaluate with both halves of the KL, bind a single environment: "
                "gym.make('textenv/...', policy=language_model)."
            )
        self.actions = actions

    def step_wait(self) -> Any:
        try:
            observations, rewards, terminated, _, info = self.envs.step(self.actions)
        except InvalidAction as error:
            error.add_note(
                "MaskablePPO applies masks. PPO and A2C do so with TextVecEnv(..., mask_in_observation=True) and "
                "CausalLMPolicy, not with Stable-Baselines3's own networks."
            )
            raise
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        _distribute_info(info, infos)
        if terminated.any():
            # Stable-Baselines3 expects the info of the terminal state in the row that was reset
            _distribute_info(info["final_info"], infos)
        for row in np.flatnonzero(terminated):
            infos[row]["terminal_observation"] = self._observation(info["final_obs"][row], infos[row])
        return self._observation(observations, info), rewards.astype(np.float32), terminated, infos

    def _observation(self, observation: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        if not self.mask_in_observation:
            return observation
        return observation | {"action_mask": info["action_mask"].copy()}  # it is read-only where nothing is masked

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sets an attribute for all rows, which are one environment."""
        if set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"The rows of TextVecEnv are one environment: {attr_name} is set for all of them, got {indices}; leave "
                "out indices."
            )
        setattr(self.envs, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Calls `action_masks`; other methods of a single environment have no counterpart here."""
        if method_name != "action_masks":
            raise AttributeError(f"TextVecEnv has only the environment method action_masks, got {method_name!r}.")
        masks = self.envs.action_masks()
        return [masks[row] for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


def _distribute_info(info: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Splits Gymnasium's vector info into the infos of the rows: `info[name][row]` if `info["_name"][row]` is True."""
    for name, values in info.items():
        if name.startswith("_") or name in ("final_obs", "final_info"):
            continue
        present = np.flatnonzero(info[f"_{name}"])
        if isinstance(values, dict):
            nested: list[dict[str, Any]] = [{} for _ in rows]
            _distribute_info(values, nested)
            values = nested
        for row in present:
            rows[row][name] = values[row]
