"""RLOO: the whole answer is one action (Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740).

    b_i   = mean of the returns of the *other* answers to the same prompt
    rho_i = pi(y_i|x) / pi_old(y_i|x)                               importance weight of the whole answer
    L     = E[ min(rho_i (G_i - b_i), clip(rho_i, 1 - eps, 1 + eps) (G_i - b_i)) ]

What it adds to REINFORCE with credit="sequence" and baseline="leave_one_out": the answers may be used `n_epochs` times,
like PPO's, but with one importance weight an answer (as in TRL; Ahmadian et al. use each once). With rho = 1, in the
first minibatch, the gradient is REINFORCE's; without a clip it is, for the score, unbiased however far pi has moved,
which with PPO's weights a token it is not. (The KL that was paid stays that of pi_old.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from agents.agent import Agent, check_range
from agents.functional import clipped_surrogate_loss, leave_one_out, reward_to_go
from agents.sampling import Rollout
from agents.training import Info, Metrics, run_epochs


@dataclass(eq=False)
class RLOO(Agent):
    """REINFORCE leave-one-out; see this file's docstring."""

    num_generations: int = 4
    """Answers to the same prompt, side by side among the n_episodes; at least 2."""
    n_epochs: int = 1
    """How often each answer is used."""
    batch_size: int | None = None
    """Answers a minibatch; None is all of them."""
    clip_range: float | None = 0.2
    """eps; None is importance weights without a clip."""
    target_kl: float | None = None
    """Stop the epochs of a batch when KL(pi_old || pi) an answer exceeds 1.5 times this; None never does."""

    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_generations", self.num_generations, 2)
        check_range("n_epochs", self.n_epochs, 1)
        check_range("batch_size", self.batch_size, 1)
        check_range("clip_range", self.clip_range, 0)
        check_range("target_kl", self.target_kl, 0)

    def train(self, rollout: Rollout) -> Metrics:
        """`n_epochs` passes over the answers, in minibatches."""
        returns = reward_to_go(rollout.rewards, rollout.mask, self.gamma)[:, 0]
        advantages = returns - leave_one_out(returns, self.num_generations)
        answers = rollout.without_strings()
        return run_epochs(self, len(rollout), lambda rows: [self.loss(answers[rows], advantages[rows])])

    def loss(self, rollout: Rollout, advantages: Tensor) -> tuple[Tensor, Info]:
        """The loss of some answers with advantages [B], and what is worth watching, an answer."""
        log_probs = self.learner(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask, values=False
        ).log_probs
        whole = torch.where(rollout.mask, log_probs, 0.0).sum(dim=1, keepdim=True)  # log pi(y|x), [B, 1]
        old = rollout.log_probs.sum(dim=1, keepdim=True)
        one = torch.ones_like(whole, dtype=torch.bool)
        loss, info = clipped_surrogate_loss(whole, old, advantages[:, None], one, self.clip_range)
        return loss, info | {"loss/policy_avg": loss.detach()}
