"""REINFORCE: raises the probability of tokens that were followed by a high return (Williams 1992).

    grad J = E[ sum_t grad log pi(a_t|s_t) (w_t - b) ]

The log-derivative trick turns the gradient of an expectation into the expectation of a gradient. Monte Carlo estimates
it from several completions. The variants differ in the weight w_t, the credit of a token:

    "sequence"        G_0, the whole return, including rewards before the token
    "reward_to_go"    G_t, the rewards from the token on
    "q"               Q(s_t, a_t), the mean return over several continuations from (s_t, a_t)

and in the baseline b: "leave_one_out" changes only the variance, "mean" also scales the expected gradient by 1 - 1/N.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents.agent import Agent
from agents.functional import (
    batch_mean,
    in_groups,
    leave_one_out,
    masked_whiten,
    policy_diagnostics,
    policy_gradient_loss,
    reward_to_go,
)
from agents.ignored_settings import only_with
from agents.kl_in_loss import add_kl
from agents.sampling import Rollout, collect, is_external, states_after
from agents.training import Batch, Info, Metrics, all_reduce_sum
from textenv import get_mdp

CHUNK = 256  # states whose continuations are sampled in one batch


@dataclass(eq=False)
class REINFORCE(Agent):
    """Policy gradient by Monte Carlo, see this file's docstring."""

    num_generations: int = 4
    """Completions per prompt, a group; contiguous among the n_episodes."""
    credit: Literal["sequence", "reward_to_go", "q"] = "reward_to_go"
    """The weight of a token: whole return, reward to go, or Q."""
    baseline: Literal["mean", "leave_one_out"] | None = "leave_one_out"
    """None, the mean return of the batch, or the mean return of the other completions of the prompt."""
    num_continuations: int = only_with("credit='q'", lambda settings: settings["credit"] == "q", 4)
    """With credit="q": continuations sampled from each (s_t, a_t)."""
    normalize_advantage: bool = False
    """Whiten the weights over the real tokens of a batch (REINFORCE++, Hu et al. 2025, arXiv:2501.03262)."""

    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.credit == "q" and is_external(self.env):
            raise ValueError(
                "credit='q' needs an environment of textenv, which can start in any state, got one of another library; "
                "use credit='reward_to_go'."
            )
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ValueError(
                "baseline='leave_one_out' needs num_generations >= 2 completions per prompt, got 1; "
                "raise num_generations, or use baseline='mean'."
            )
        self.skipped_continuations = torch.zeros((), dtype=torch.int64, device=self.policy.device)  # of an update

    def train(self, rollout: Rollout) -> Metrics:
        """Takes one gradient step."""
        self.skipped_continuations.zero_()
        rollout = rollout.skip(~self.trained_rows(rollout))
        returns = reward_to_go(rollout.rewards, rollout.mask, self.gamma)
        weights = self.weights(rollout)
        if self.normalize_advantage:
            weights = masked_whiten(weights, rollout.mask, total=all_reduce_sum)
        metrics = self.backward(Batch(rollout, rollout.weighted(weights), returns)) | {"grad_norm": self.step()}
        if self.credit == "q":
            metrics["completions/skipped_continuations"] = float(all_reduce_sum(self.skipped_continuations))
        return metrics

    def trained_rows(self, rollout: Rollout) -> Tensor:
        """The completions that are not skipped; with leave_one_out, in groups with at least two of them."""
        if self.baseline == "leave_one_out":
            return in_groups(rollout.valid, self.num_generations)
        return rollout.valid

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the loss of some completions with weights w_t - b, and metrics."""
        rollout, evaluation = batch.rollout, self.evaluate_actions(batch.rollout)
        loss = policy_gradient_loss(evaluation.log_probs, batch.advantages, rollout.mask)
        info = policy_diagnostics(loss, evaluation.log_probs, rollout.log_probs, rollout.mask)
        yield add_kl(self, loss, info, rollout, evaluation)

    def weights(self, rollout: Rollout) -> Tensor:
        """Weights w_t - b, [B, T]."""
        to_go = reward_to_go(rollout.rewards, rollout.mask, self.gamma)
        returns = to_go[:, 0]
        if self.credit == "sequence":
            weights = returns[:, None].expand_as(to_go)
        elif self.credit == "reward_to_go":
            weights = to_go
        else:
            weights = self.q_values(rollout)
        if self.baseline is None:
            return weights
        if self.baseline == "mean":
            return weights - batch_mean(returns, all_reduce_sum, rollout.valid)[:, None]
        return weights - leave_one_out(returns, self.num_generations, rollout.valid)[:, None]

    def q_values(self, rollout: Rollout) -> Tensor:
        """Estimates Q(s_t, a_t) ~ r_t + gamma mean_k G_{t+1}^(k) over continuations from s_{t+1}, [B, T].

        At the last token Q is r_t. Continuations that are skipped are left out of the mean; where none is left, the
        completion itself is the only continuation, and Q ~ G_t.
        """
        row, time = torch.nonzero(has_next_token(rollout), as_tuple=True)
        q_values = rollout.rewards.clone()
        to_go = reward_to_go(rollout.rewards, rollout.mask, self.gamma)
        if len(row) == 0:
            return q_values
        for rows, times in zip(row.split(CHUNK), time.split(CHUNK), strict=True):  # type: ignore[no-untyped-call]
            start = states_after(get_mdp(self.env), rollout, rows, times, self.num_continuations)
            continuations = collect(
                self.env,
                self.policy,
                generator=self.generator,
                values=False,
                start=start,
                kl_coef=0.0 if self.kl_in == "loss" else self.kl_coef,
                sampler=self.sampler,
            )
            self.num_timesteps += int(continuations.num_sampled)  # these are sampled tokens too
            returns = reward_to_go(continuations.rewards, continuations.mask, self.gamma)
            first = (times + 1).repeat_interleave(self.num_continuations)
            sampled = returns.gather(1, first[:, None]).view(-1, self.num_continuations)
            valid = continuations.valid.view(-1, self.num_continuations)
            self.skipped_continuations += (~valid).sum()
            mean = torch.where(valid, sampled, 0.0).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
            q_values[rows, times] += self.gamma * torch.where(valid.any(dim=1), mean, to_go[rows, times + 1])
        return q_values


def has_next_token(rollout: Rollout) -> Tensor:
    """Whether a token was sampled and is not the last of its completion, bool [B, T]."""
    next_mask = torch.cat([rollout.mask[:, 1:], torch.zeros_like(rollout.mask[:, :1])], dim=1)
    return rollout.mask & next_mask
