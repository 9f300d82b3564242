"""The base of RLOO and GRPO: the advantage of a completion is its return relative to the others of its prompt.

A completion has one advantage, for all its tokens. There is no V. Each batch is used for several epochs.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.agent import Agent
from agents.functional import in_groups, masked_whiten, reward_to_go
from agents.ranges import RANGES, check_range
from agents.sampling import Rollout
from agents.training import Batch, EpochSettings, Metrics, all_reduce_sum, run_epochs


@dataclass(eq=False)
class GroupAgent(EpochSettings, Agent):
    """An agent that compares the completions of a group, see this file's docstring."""

    normalize_advantage: bool = False
    """Whiten the advantages over the real tokens of a batch (REINFORCE++, Hu et al. 2025, arXiv:2501.03262)."""

    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_generations", self.num_generations, 2, RANGES["num_generations"].high)

    @abstractmethod
    def advantages(self, returns: Tensor, valid: Tensor) -> Tensor:
        """The advantages of completions, [B], from their returns, [B].

        Args:
            returns: G_0 of each completion; those of a group are contiguous.
            valid: bool [B], False for completions that are skipped.
        """

    def completion_weights(self, mask: Tensor) -> Tensor | None:
        """What the loss weighs completions by, [B, 1], from the mask of all that are trained on; None is 1."""
        return None

    def train(self, rollout: Rollout) -> Metrics:
        """Takes `n_epochs` passes over the completions, in minibatches."""
        valid = self.trained_rows(rollout)
        rollout = rollout.skip(~valid)
        returns = reward_to_go(rollout.rewards, rollout.mask, self.gamma)
        advantages = self.advantages(returns[:, 0], valid)[:, None].expand_as(rollout.mask)
        if self.normalize_advantage:
            advantages = masked_whiten(advantages, rollout.mask, total=all_reduce_sum)
        weights = self.completion_weights(rollout.mask)
        return run_epochs(self, Batch(rollout, rollout.weighted(advantages), returns, weights))

    def trained_rows(self, rollout: Rollout) -> Tensor:
        """The completions that are not skipped, in groups with at least two of them."""
        return in_groups(rollout.valid, self.num_generations)
