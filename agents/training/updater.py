"""Learning several times from the same answers: what PPO, RLOO and GRPO share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from agents.training.metrics import Metrics, reduce_minibatches
from agents.training.ranks import per_rank

Info = dict[str, Tensor]  # what is worth watching of a loss
Losses = Callable[[Tensor], Iterable[tuple[Tensor, Info]]]  # of the answers in some rows (int64), to be added up


def run_epochs(agent: Any, count: int, losses: Losses) -> Metrics:
    """`agent.n_epochs` passes over `count` answers, a step of Adam each minibatch; what the minibatches said.

    Stops before a step when KL(pi_old || pi) exceeds 1.5 times `agent.target_kl`, as in Stable-Baselines3. Of several
    processes each shuffles its own answers, and brings its share of every minibatch; all see the same KL, and stop at
    the same one.

    Args:
        agent: has `n_epochs`, `batch_size`, `target_kl` and `generator`, and what every `Agent` has.
        count: B.
        losses: of the answers in some rows, and what is worth watching, `policy/approxkl_avg` among it.
    """
    seen: list[Metrics] = []
    size = agent.batch_size and per_rank(agent.batch_size)
    for rows in minibatches(count, agent.n_epochs, size, agent.generator):
        info = agent.backward(rows, losses)
        if agent.target_kl is not None and info["policy/approxkl_avg"] > 1.5 * agent.target_kl:
            break
        seen.append(info | {"grad_norm": agent.step()})
    return reduce_minibatches(seen) | {"num_minibatches": float(len(seen))}


def minibatches(count: int, n_epochs: int, batch_size: int | None, generator: torch.Generator) -> list[Tensor]:
    """The rows of each minibatch: `n_epochs` shuffles of 0 .. count - 1, cut into `batch_size` (None: all)."""
    rows: list[Tensor] = []
    for _ in range(n_epochs):
        order = torch.randperm(count, generator=generator, device=generator.device)
        rows += list(order.split(batch_size or count))  # type: ignore[no-untyped-call]
    return rows
