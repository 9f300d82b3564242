"""The updates of PPO, RLOO, GRPO and PathConsistency: several optimizer steps, each from a minibatch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agents.sampling import Rollout
from agents.training.ranks import per_rank
from agents.training.reduction import Metrics, reduce_minibatches
from textenv.lm import to_device

Info = dict[str, Tensor]  # the metrics of a loss, by the names of `METRICS` in agents/training/reduction.py


@dataclass(frozen=True)
class Batch:
    """Completions, and what the losses weigh them by. `batch[rows]` are some of them.

    Attributes:
        rollout: the completions; one that is skipped has a mask that is all False.
        advantages: A_t, or another weight of grad log pi(a_t|s_t), [B, T].
        returns: G_t, the targets of V, [B, T].
        completion_weights: what the loss weighs the sum over each completion's tokens by, [B, 1]; None is 1.
    """

    rollout: Rollout
    advantages: Tensor
    returns: Tensor
    completion_weights: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> Batch:
        there = to_device(rows, self.advantages.device)
        weights = None if self.completion_weights is None else self.completion_weights[there]
        return Batch(self.rollout.without_strings()[rows], self.advantages[there], self.returns[there], weights)


@dataclass(eq=False)
class EpochSettings:
    """Settings of agents that use each batch of completions several times."""

    n_epochs: int = 4
    """Passes over each batch of completions."""
    batch_size: int | None = None
    """Completions per minibatch; None is all of them."""
    clip_range: float | None = 0.2
    """eps; None is importance weights without a clip."""
    target_kl: float | None = None
    """Stop the epochs of a batch when KL(pi_old || pi) per token (RLOO: per completion) exceeds 1.5 times this, as in
    Stable-Baselines3; None never stops. The minibatch that exceeds it is not trained on; it is in the metrics."""


def run_epochs(agent: Any, batch: Batch) -> Metrics:
    """Takes an optimizer step for each minibatch, until KL(pi_old || pi) is too large; returns the reduced metrics.

    They include those of the minibatch that is too far from pi_old, without a step."""
    rows = minibatches(len(batch.rollout), agent.n_epochs, agent.batch_size, agent.generator)
    return take_steps(agent, ((batch, each) for each in rows), agent.target_kl)


def take_steps(agent: Any, batches: Iterable[tuple[Batch, Tensor]], target_kl: float | None = None) -> Metrics:
    """Takes an optimizer step for each minibatch: a batch, and rows of it. See `run_epochs`."""
    of_minibatches = list[Metrics]()
    for batch, rows in batches:
        metrics = agent.backward(batch, rows)
        if not metrics:  # all completions of the minibatch are skipped
            continue
        of_minibatches.append(metrics)
        if target_kl is not None and metrics["policy/approxkl_avg"] > 1.5 * target_kl:
            break
        metrics["grad_norm"] = agent.step()
    steps = sum("grad_norm" in metrics for metrics in of_minibatches)
    return reduce_minibatches(of_minibatches) | {"num_minibatches": float(steps)}


def minibatches(
    count: int, n_epochs: int, batch_size: int | None, generator: torch.Generator, num_generations: int = 1
) -> list[Tensor]:
    """Returns the rows of each minibatch: `n_epochs` shuffles of 0 .. count - 1, split by `batch_size` (None: all).

    What is shuffled are whole groups of `num_generations` rows, which `batch_size` must be a multiple of.
    """
    orders = shuffles([count] * n_epochs, generator, num_generations)
    return [rows for order in orders for rows in split_rows(order, batch_size)]


def shuffles(counts: list[int], generator: torch.Generator, num_generations: int = 1) -> list[Tensor]:
    """Returns for each count a shuffle of 0 .. count - 1, on the host: int64 [count].

    What is shuffled are whole groups of `num_generations` rows. All are drawn on the device and copied together: where
    the rows of a minibatch are known on the host, so are its equal prompts.
    """
    within = torch.arange(num_generations, device=generator.device)
    orders = []
    for count in counts:
        groups = torch.randperm(count // num_generations, generator=generator, device=generator.device)
        orders.append((groups[:, None] * num_generations + within).flatten())
    return list(torch.cat(orders).cpu().split(counts))  # type: ignore[no-untyped-call]


def split_rows(order: Tensor, batch_size: int | None) -> list[Tensor]:
    """Splits rows into minibatches of `batch_size` completions over all ranks; None: one with all of them."""
    size = len(order) if batch_size is None else per_rank(batch_size)
    return list(order.split(size))  # type: ignore[no-untyped-call]
