"""REINFORCE: raise the probability of what was followed by a high return (Williams 1992).

    grad J = E[ sum_t grad log pi(a_t|s_t) (w_t - b) ]

The log-derivative trick turns the gradient of an expectation into the expectation of a gradient; Monte Carlo estimates
it from several answers. What differs is the weight w_t, the credit that a token gets:

    "sequence"        G_0, the whole return: also what was paid before the token
    "reward_to_go"    G_t, what came after it
    "q"               Q(s_t, a_t), the mean return over several continuations from (s_t, a_t)

and the baseline b: "leave_one_out" changes the variance alone, "mean" also scales the expected gradient by 1 - 1/N.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents.agent import Agent, check_range
from agents.functional import batch_mean, leave_one_out, policy_gradient_loss, reward_to_go
from agents.sampling import Rollout, collect, is_external, states_after
from agents.training import Info, Metrics, all_reduce_sum
from textenv import get_mdp

CHUNK = 256  # states whose continuations are written at once


@dataclass(eq=False)
class REINFORCE(Agent):
    """Policy gradient by Monte Carlo; see this file's docstring."""

    num_generations: int = 4
    """Answers to the same prompt, side by side among the n_episodes."""
    credit: Literal["sequence", "reward_to_go", "q"] = "reward_to_go"
    """The weight of a token: whole return, reward to go, or Q."""
    baseline: Literal["mean", "leave_one_out"] | None = "leave_one_out"
    """Nothing, the mean return of the batch, or the mean return of the other answers to the same prompt."""
    num_continuations: int = 4
    """With credit="q": continuations from each (s_t, a_t)."""

    needs_values: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.credit not in ("sequence", "reward_to_go", "q"):
            raise ValueError(f"credit must be 'sequence', 'reward_to_go' or 'q', got {self.credit!r}.")
        if self.baseline not in (None, "mean", "leave_one_out"):
            raise ValueError(f"baseline must be None, 'mean' or 'leave_one_out', got {self.baseline!r}.")
        check_range("num_continuations", self.num_continuations, 1)
        if self.credit == "q" and is_external(self.env):
            raise ValueError("credit='q' needs an environment of textenv, which can begin in any state.")
        if self.baseline == "leave_one_out" and self.num_generations < 2:
            raise ValueError("baseline='leave_one_out' needs num_generations >= 2 answers to each prompt, got 1.")

    def train(self, rollout: Rollout) -> Metrics:
        """One step up the gradient."""
        weights = self.weights(rollout)
        answers = rollout.without_strings()
        rows = torch.arange(len(rollout), device=weights.device)
        metrics = self.backward(rows, lambda rows: [self.loss(answers[rows], weights[rows])])
        return metrics | {"grad_norm": self.step()}

    def loss(self, rollout: Rollout, weights: Tensor) -> tuple[Tensor, Info]:
        """The loss of some answers with weights w_t - b, [B, T]."""
        log_probs = self.learner(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask, values=False
        ).log_probs
        loss = policy_gradient_loss(log_probs, weights, rollout.mask)
        return loss, {"loss/policy_avg": loss.detach()}

    def weights(self, rollout: Rollout) -> Tensor:
        """w_t - b, [B, T]."""
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
            return weights - batch_mean(returns, all_reduce_sum)[:, None]
        return weights - leave_one_out(returns, self.num_generations)[:, None]

    def q_values(self, rollout: Rollout) -> Tensor:
        """Q(s_t, a_t) ~ r_t + gamma mean_k G_{t+1}^(k) over continuations from s_{t+1}, [B, T]; r_t at the end."""
        row, time = torch.nonzero(has_next_token(rollout), as_tuple=True)
        q_values = rollout.rewards.clone()
        if len(row) == 0:
            return q_values
        for rows, times in zip(row.split(CHUNK), time.split(CHUNK), strict=True):  # type: ignore[no-untyped-call]
            starts = states_after(get_mdp(self.env), rollout, rows, times, self.num_continuations)
            onward = collect(
                self.env,
                self.policy,
                generator=self.generator,
                values=False,
                start=starts,
                kl_coef=self.kl_coef,
                sampler=self.sampler,
            )
            self.num_timesteps += int(onward.mask.sum())  # tokens too
            returns = reward_to_go(onward.rewards, onward.mask, self.gamma)
            first = (times + 1).repeat_interleave(self.num_continuations)
            sampled = returns.gather(1, first[:, None]).view(-1, self.num_continuations)
            q_values[rows, times] += self.gamma * sampled.mean(dim=1)
        return q_values


def has_next_token(rollout: Rollout) -> Tensor:
    """bool [B, T]: the token was written and is not the answer's last."""
    after = torch.cat([rollout.mask[:, 1:], torch.zeros_like(rollout.mask[:, :1])], dim=1)
    return rollout.mask & after
