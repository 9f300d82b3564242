"""Environments stepped with the same actions, and compared."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.helpers.plain_env import PlainEnv
from tests.helpers.tasks import allowed_action, assert_same
from textenv import TextEnv, TextMDP, TextVectorEnv

MODES = list(AutoresetMode)


def masked_info(info: dict[str, Any]) -> dict[str, Any]:
    """A vector info without the values that its masks exclude: `{key: (mask, values of the rows in the mask)}`."""
    rows: dict[str, Any] = {}
    for key, values in info.items():
        if f"_{key}" in info:
            mask = info[f"_{key}"]
            rows[key] = (mask, masked_info(values) if isinstance(values, dict) else values[mask])
    assert {*rows, *(f"_{key}" for key in rows)} == set(info), "every key comes with its mask"
    return rows


def array_and_loop(arguments: dict[str, Any], num_envs: int, mode: AutoresetMode, policy: Any = None) -> list[Any]:
    """A `TextVectorEnv`, and Gymnasium's loop over plain environments of the same task: the oracle."""
    return [
        TextVectorEnv(TextMDP(**arguments), num_envs, autoreset_mode=mode, policy=policy),
        SyncVectorEnv([partial(PlainEnv, TextMDP(**arguments), policy)] * num_envs, autoreset_mode=mode),
    ]


def compare_trajectories(pair: list[Any], seed: int, steps: int, atol: float = 0.0, seeds: Any = None) -> int:
    """Asserts that both environments return the same along random legal actions; returns how many episodes ended."""
    rng, ended = np.random.default_rng(seed), 0

    def agree(results: list[Any]) -> dict[str, Any]:
        assert_same(*([*result[:-1], masked_info(result[-1])] for result in results), atol=atol)
        info: dict[str, Any] = results[0][-1]
        return info

    info = agree([envs.reset(seed=seed if seeds is None else seeds) for envs in pair])
    for _ in range(steps):
        keys = rng.random(info["action_mask"].shape)
        actions = np.where(info["action_mask"] == 1, keys, -1.0).argmax(axis=1)
        results = [envs.step(actions) for envs in pair]
        info, terminated = agree(results), results[0][2]
        ended += int(terminated.sum())
        if pair[0].autoreset_mode == AutoresetMode.DISABLED and terminated.any():
            reset_info = agree([envs.reset(options={"reset_mask": terminated.copy()}) for envs in pair])
            info = {"action_mask": np.where(terminated[:, None], reset_info["action_mask"], info["action_mask"])}
    return ended


class CallCounter:
    """Counts the calls of a reward function, policy or reference, and the rows of each call."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The reward function or the policy."""
        self.calls.append(len(args[0] if args else kwargs["prompts"]))
        return self.inner(*args, **kwargs)

    def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
        """The reference."""
        self.calls.append(len(input_ids))
        return self.inner.log_probs(input_ids, attention_mask)


def random_trajectory(env: TextEnv | PlainEnv, seed: int, steps: int = 12) -> list[Any]:
    """Everything that `reset` and `step` return along random legal actions."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    results: list[Any] = [(observation, info)]
    for _ in range(steps):
        results.append(env.step(allowed_action(info["action_mask"], rng)))
        info = results[-1][-1]
        if results[-1][2]:
            results.append(env.reset())
            info = results[-1][-1]
    return results
