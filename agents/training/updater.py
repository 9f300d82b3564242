"""The update of PPO, RLOO and GRPO: several epochs of minibatches over the same rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from agents.training.metrics import Metrics, reduce_minibatches
from agents.training.ranks import per_rank

Info = dict[str, Tensor]  # the metrics of a loss
Losses = Callable[[Tensor], Iterable[tuple[Tensor, Info]]]  # losses of some rows (int64) of a rollout, to be summed


def run_epochs(agent: Any, valid: Tensor, losses: Losses) -> Metrics:
    """Runs `agent.n_epochs` epochs over B completions, an Adam step per minibatch; returns the reduced metrics.

    Stops before a step when KL(pi_old || pi) exceeds 1.5 times `agent.target_kl`, as in Stable-Baselines3. Each rank
    shuffles its own completions and contributes its share of every minibatch. All ranks compute the same KL, so they
    stop at the same minibatch. A minibatch whose completions are skipped on all ranks is passed over.

    Args:
        agent: has `n_epochs`, `batch_size`, `target_kl` and `generator`, and the attributes of every `Agent`.
        valid: bool [B], False for completions that are skipped.
        losses: returns losses of some rows and their metrics, which include `policy/approxkl_avg`.
    """
    rows_of_metrics: list[Metrics] = []
    size = agent.batch_size and per_rank(agent.batch_size)
    for rows in minibatches(len(valid), agent.n_epochs, size, agent.generator):
        info = agent.backward(rows, losses, valid)
        if not info:
            continue
        if agent.target_kl is not None and info["policy/approxkl_avg"] > 1.5 * agent.target_kl:
            break
        rows_of_metrics.append(info | {"grad_norm": agent.step()})
    return reduce_minibatches(rows_of_metrics) | {"num_minibatches": float(len(rows_of_metrics))}


def minibatches(count: int, n_epochs: int, batch_size: int | None, generator: torch.Generator) -> list[Tensor]:
    """Returns the rows of each minibatch: `n_epochs` shuffles of 0 .. count - 1, split by `batch_size` (None: all)."""
    rows: list[Tensor] = []
    for _ in range(n_epochs):
        order = torch.randperm(count, generator=generator, device=generator.device)
        rows += list(order.split(batch_size or count))  # type: ignore[no-untyped-call]
    return rows
