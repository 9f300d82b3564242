"""GRPO: the other completions of the prompt replace the critic (Shao et al. 2024, arXiv:2402.03300).

    A_t   = (G_i - mean(G_1 .. G_K)) / std(G_1 .. G_K)              for every token of completion i of K
    L     = E[ sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t) ]

What it changes in PPO: there is no critic. The advantage is relative to the group, and the same for all tokens of a
completion. With eps_high > eps ("clip-higher", Yu et al. 2025, arXiv:2503.14476) the probability of unlikely tokens can
rise further.

Unlike Shao et al.: the KL is in the reward and not in the loss (`python -m experiments lecture --claims which_kl`
measures why), and the loss is a sum over a completion's tokens and not a mean. The mean favours short correct and long
wrong completions (Liu et al. 2025, arXiv:2503.20783). Liu et al. also argue against dividing by the standard deviation:
`scale_rewards=False`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from agents.agent import Agent
from agents.functional import (
    clipped_surrogate_loss,
    first_ratio_error,
    group_relative,
    in_groups,
    reward_to_go,
    surrogate_diagnostics,
)
from agents.ranges import RANGES, check_range
from agents.sampling import Rollout
from agents.training import Batch, EpochSettings, Info, Metrics, run_epochs


@dataclass(eq=False)
class GRPO(EpochSettings, Agent):
    """Group-relative policy optimisation, see this file's docstring."""

    num_generations: int = 8
    """K, completions per prompt, a group; contiguous among the n_episodes; at least 2."""
    scale_rewards: bool = True
    """Divide advantages by the group's standard deviation."""
    clip_range_high: float | None = 0.28
    """eps_high, for rho > 1; None is eps."""

    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_generations", self.num_generations, 2, RANGES["num_generations"].high)

    def train(self, rollout: Rollout) -> Metrics:
        """Takes `n_epochs` passes over the completions, in minibatches."""
        valid = self.trained_rows(rollout)
        rollout = rollout.skip(~valid)
        returns = reward_to_go(rollout.rewards, rollout.mask, self.gamma)[:, 0]
        advantages = group_relative(returns, self.num_generations, self.scale_rewards, valid=valid)
        return run_epochs(self, Batch(rollout, advantages[:, None].expand_as(rollout.mask)))

    def trained_rows(self, rollout: Rollout) -> Tensor:
        """The completions that are not skipped, in groups with at least two of them."""
        return in_groups(rollout.valid, self.num_generations)

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the loss of some completions, and metrics."""
        rollout, log_probs = batch.rollout, self.evaluate_actions(batch.rollout).log_probs
        clip = (self.clip_range, self.clip_range_high)
        arguments = (log_probs, rollout.log_probs, batch.advantages, rollout.mask, *clip)
        loss, info = clipped_surrogate_loss(*arguments), surrogate_diagnostics(*arguments)
        info |= first_ratio_error(log_probs, rollout.log_probs, rollout.mask)
        yield loss, info | {"loss/policy_avg": loss.detach()}
