"""Which settings of Stable-Baselines3's PPO are measured; the rewards have the KL."""

from __future__ import annotations

from functools import partial
from typing import Any

from experiments.peers.row import Row
from experiments.peers.sb3_losses import SB3PPO

EQUAL = "score - KL, equal lengths"


def rows() -> list[Row]:
    """The settings in the order of the table."""
    plain: dict[str, Any] = {"gae_lambda": 1.0, "normalize_advantage": False}
    normalized: dict[str, Any] = {"gae_lambda": 1.0}
    return [
        Row("PPO(gae_lambda=1, normalize_advantage=False)", partial(SB3PPO, **plain), EQUAL, fixed_point=True),
        Row("PPO(normalize_advantage=False)", partial(SB3PPO, normalize_advantage=False), EQUAL, fixed_point=True),
        Row("PPO(gae_lambda=1)", partial(SB3PPO, **normalized), EQUAL),
        Row("PPO(gae_lambda=1)", partial(SB3PPO, **normalized), EQUAL, num_generations=3),
        Row("PPO(gae_lambda=1, normalize_advantage=False)", partial(SB3PPO, **plain)),
    ]
