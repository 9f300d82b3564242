"""Rollouts in which some completions are skipped, as `collect` returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from agents.sampling import Rollout


def with_skips(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The rollout as if the rewards of these rows had failed."""
    skipped = torch.zeros(len(rollout), dtype=torch.bool)
    skipped[list(rows)] = True

    def erased(x: Tensor | None, value: float = 0.0) -> Any:
        return None if x is None else torch.where(skipped.view(-1, *[1] * (x.ndim - 1)), value, x)

    return replace(
        rollout,
        mask=rollout.mask & ~skipped[:, None],
        log_probs=erased(rollout.log_probs),
        ref_log_probs=erased(rollout.ref_log_probs),
        rewards=erased(rollout.rewards),
        values=erased(rollout.values),
        scores=erased(rollout.scores, torch.nan),
        gold_scores=erased(rollout.gold_scores, torch.nan),
        lengths=rollout.mask.sum(dim=1),
    )


def without(rollout: Rollout, rows: Sequence[int]) -> Rollout:
    """The rollout without these rows."""
    return rollout[torch.tensor([row for row in range(len(rollout)) if row not in set(rows)])]
