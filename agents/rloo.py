"""RLOO: the whole completion is one action (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

    b_i   = mean return of the *other* completions of the same prompt
    rho_i = pi(y_i|x) / pi_old(y_i|x)                               importance weight of the whole completion
    L     = E[ min(rho_i (G_i - b_i), clip(rho_i, 1 - eps, 1 + eps) (G_i - b_i)) ]

What it adds to REINFORCE with credit="sequence" and baseline="leave_one_out": the completions may be used `n_epochs`
times as in PPO, but with one importance weight per completion (as in TRL; Ahmadian et al. use each completion once). In
the first minibatch rho = 1, and the gradient is that of REINFORCE. Without a clip the gradient of the score is unbiased
however far pi is from pi_old; with PPO's weights per token it is not. (The KL in the rewards stays that of pi_old.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.functional import clipped_surrogate_loss, leave_one_out, policy_diagnostics, surrogate_diagnostics
from agents.group_agent import GroupAgent
from agents.kl_in_loss import add_kl
from agents.training import Batch, Info


@dataclass(eq=False)
class RLOO(GroupAgent):
    """REINFORCE leave-one-out, see this file's docstring."""

    num_generations: int = 4
    """Completions per prompt, a group; contiguous among the n_episodes; at least 2."""
    n_epochs: int = 1
    """Passes over each batch of completions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler_correction is not None and self.sampler_level != "sequence":
            raise ValueError(
                "sampler_level must be 'sequence' for RLOO with a sampler_correction: a completion has one weight, got "
                f"{self.sampler_level!r}."
            )

    def advantages(self, returns: Tensor, valid: Tensor) -> Tensor:
        """G_i - b_i."""
        return returns - leave_one_out(returns, self.num_generations, valid)

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the loss of some completions, with one importance weight for each, and metrics per completion."""
        rollout, evaluation = batch.rollout, self.evaluate_actions(batch.rollout)
        log_probs = evaluation.log_probs
        sequence_log_probs = torch.where(rollout.mask, log_probs, 0.0).sum(dim=1, keepdim=True)  # log pi(y|x), [B, 1]
        old_log_probs = rollout.log_probs.sum(dim=1, keepdim=True)
        advantages, valid = batch.advantages[:, :1], rollout.valid[:, None]  # one for all tokens of a completion
        arguments = (sequence_log_probs, old_log_probs, advantages, valid, self.clip_range)
        loss, info = clipped_surrogate_loss(*arguments), surrogate_diagnostics(*arguments)
        info |= policy_diagnostics(loss, log_probs, rollout.log_probs, rollout.mask)
        yield add_kl(self, loss, info, rollout, evaluation)
