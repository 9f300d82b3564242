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

from torch import Tensor

from agents.functional import clipped_surrogate_loss, group_relative, policy_diagnostics, surrogate_diagnostics
from agents.group_agent import GroupAgent
from agents.training import Batch, Info


@dataclass(eq=False)
class GRPO(GroupAgent):
    """Group-relative policy optimisation, see this file's docstring."""

    num_generations: int = 8
    """K, completions per prompt, a group; contiguous among the n_episodes; at least 2."""
    scale_rewards: bool = True
    """Divide advantages by the group's standard deviation."""
    clip_range_high: float | None = 0.28
    """eps_high, for rho > 1; None is eps."""

    def advantages(self, returns: Tensor, valid: Tensor) -> Tensor:
        """(G_i - mean) / std of the group; without `scale_rewards` G_i - mean."""
        return group_relative(returns, self.num_generations, self.scale_rewards, valid=valid)

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the loss of some completions, and metrics."""
        rollout, log_probs = batch.rollout, self.evaluate_actions(batch.rollout).log_probs
        clip = (self.clip_range, self.clip_range_high)
        arguments = (log_probs, rollout.log_probs, batch.advantages, rollout.mask, *clip)
        loss, info = clipped_surrogate_loss(*arguments), surrogate_diagnostics(*arguments)
        yield loss, info | policy_diagnostics(loss, log_probs, rollout.log_probs, rollout.mask)
