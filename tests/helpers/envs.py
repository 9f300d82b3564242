"""Environments stepped side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.helpers.tasks import (
    allowed_action,
    assert_same,
    make,
)
from textenv import TextEnv, TextMDP, TextVectorEnv

MODES = list(AutoresetMode)


def told(info: dict[str, Any]) -> dict[str, Any]:
    """A vector info with only what its masks say is there: `{key: (rows, values of these rows)}`."""
    rows: dict[str, Any] = {}
    for key, values in info.items():
        if f"_{key}" in info:
            mask = info[f"_{key}"]
            rows[key] = (mask, told(values) if isinstance(values, dict) else values[mask])
    assert {*rows, *(f"_{key}" for key in rows)} == set(info), "every key comes with its mask"
    return rows


def both(arguments: dict[str, Any], num_envs: int, mode: AutoresetMode, policy: Any = None) -> list[Any]:
    """The arrays, and the loop over single environments."""
    return [
        TextVectorEnv(TextMDP(**arguments), num_envs, autoreset_mode=mode, policy=policy),
        SyncVectorEnv([partial(make, arguments, policy=policy)] * num_envs, autoreset_mode=mode),
    ]


def compare(pair: list[Any], seed: int, steps: int, atol: float = 0.0, seeds: Any = None) -> int:
    """Both environments say the same along random legal actions; returns the number of texts that ended."""
    rng, ended = np.random.default_rng(seed), 0

    def agree(said: list[Any]) -> dict[str, Any]:
        assert_same(*([*answer[:-1], told(answer[-1])] for answer in said), atol=atol)
        info: dict[str, Any] = said[0][-1]
        return info

    info = agree([envs.reset(seed=seed if seeds is None else seeds) for envs in pair])
    for _ in range(steps):
        keys = rng.random(info["action_mask"].shape)
        actions = np.where(info["action_mask"] == 1, keys, -1.0).argmax(axis=1)
        said = [envs.step(actions) for envs in pair]
        info, terminated = agree(said), said[0][2]
        ended += int(terminated.sum())
        if pair[0].autoreset_mode == AutoresetMode.DISABLED and terminated.any():
            whole = agree([envs.reset(options={"reset_mask": terminated.copy()}) for envs in pair])
            info = {"action_mask": np.where(terminated[:, None], whole["action_mask"], info["action_mask"])}
    return ended


class Counting:
    """Counts how often something is called, and with how many rows."""

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


def played(env: TextEnv, seed: int, steps: int = 12) -> list[Any]:
    """All that an environment says along random legal actions."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    said: list[Any] = [(observation, info)]
    for _ in range(steps):
        said.append(env.step(allowed_action(info["action_mask"], rng)))
        info = said[-1][-1]
        if said[-1][2]:
            said.append(env.reset())
            info = said[-1][-1]
    return said
