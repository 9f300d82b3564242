"""The gradient of a minibatch, in micro-batches, over all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.functional import widen
from agents.training.ranks import all_reduce_gradients, all_reduce_sum, gather_objects, world_size
from agents.training.reduction import Metrics, merge_micro_batches, without_counts
from agents.training.updater import Batch, Info
from textenv.lm import to_device


def compute_gradients(agent: Any, batch: Batch, rows: Tensor | None = None) -> Metrics:
    """Leaves the gradient of the losses of some rows (int64, on the host; None is all) at the agent's master weights.

    Losses are means per completion, so the micro-batches' gradients, each weighted by its share of the completions,
    add up to the minibatch's. The backward pass of each loss ends before the next loss is computed, so that the
    activations of one loss at a time are in memory. Then the gradients are averaged over the ranks, once. The numbers
    of all micro-batches and the norm of the gradient are read last, together.

    Returns:
        Metrics over all completions of all ranks, so that all ranks take the same decisions. They are empty if all
        completions are skipped; there is no gradient then, and `step` changes nothing.
    """
    if rows is None:
        rows = torch.arange(len(batch.rollout))
    optimization = agent.optimization
    optimization.optimizer.zero_grad()
    if agent.micro_batch_size is not None:  # groups stay contiguous, so that a shared prompt is encoded once
        rows = rows.sort().values
    valid = batch.rollout.valid[to_device(rows, batch.rollout.mask.device)]
    total = widen(all_reduce_sum(valid.sum()).clamp(min=1)) / world_size()  # gradients are averaged over ranks
    size = agent.micro_batch_size or len(rows)
    infos = list[Info]()
    for micro_batch, kept in zip(rows.split(size), valid.split(size), strict=True):  # type: ignore[no-untyped-call]
        info: Info = {"num_completions": kept.sum()}
        share = info["num_completions"] / total
        for loss, loss_info in agent.losses(batch[micro_batch]):
            (share.to(loss.dtype) * loss).backward()
            optimization.master_weights.accumulate_gradients()
            info |= {name: number.detach() for name, number in loss_info.items()}
        infos.append(info)
    all_reduce_gradients(optimization.stepped)
    optimization.drop_gradients(agent.frozen_parameters())
    *micro_metrics, gradient = read_numbers([*infos, {"norm": optimization.measure_gradient()}])
    metrics = merge_micro_batches(gather_objects(merge_micro_batches(micro_metrics)))
    agent.step_guard.watch(batch.rollout, rows, metrics)
    optimization.know_norm(gradient["norm"])
    if metrics["num_completions"] == 0:
        optimization.optimizer.zero_grad()
        return {}
    return without_counts(metrics)


def read_numbers(infos: list[Info]) -> list[Metrics]:
    """Reads scalar tensors in one transfer: the host waits for the device once, however many there are."""
    numbers = iter(torch.stack([widen(number) for info in infos for number in info.values()]).tolist())
    return [{name: next(numbers) for name in info} for info in infos]
