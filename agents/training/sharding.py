"""Weights, gradients and Adam's moments spread over the ranks: FSDP2, `torch.distributed.fsdp.fully_shard`.

Ranks that write answers of different lengths read their weights differently often, so weights that are gathered layer
by layer would leave one rank waiting for another. Here a sharded copy of the policy learns, in step on all ranks, and
the policy itself stays whole on each, to write and to be measured: what the copy has learned is gathered into it after
each step (`agents.masters`).

The copy is held in float32 and computes in the policy's dtype; its gradients are averaged in float32, a micro-batch at
a time, since no rank has room for whole ones. Of a trained number in bfloat16 R ranks then keep 2 + 16 / R bytes each,
in float32 4 + 16 / R, where with whole weights each keeps 18 and 16.

Where nothing is sharded every function here but `shard` changes nothing.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.policy import TransformerPolicy
from agents.training.ranks import rank, world_size


def shard(policy: TransformerPolicy, reshard_after_forward: bool = True) -> TransformerPolicy:
    """A copy of the policy of whose weights each rank holds a part, for `Agent.distribute`.

    Args:
        policy: stays as it is.
        reshard_after_forward: gather each layer again for the backward pass, rather than keep it in between.

    Raises:
        ValueError: the policy was compiled; what gathers a layer would cut its graph into pieces.
    """
    if policy._compiled_call_impl is not None:
        raise ValueError("A compiled policy cannot be sharded: do not call its compile().")
    mesh = init_device_mesh(policy.device.type, (world_size(),))
    sharded = copy.deepcopy(policy)
    sharded.share_prefixes = False  # ranks with other prompts would gather a layer another number of times, and wait
    for module in sharded.modules():
        if isinstance(module, GradientCheckpointingLayer):  # what transformers' layers are
            fully_shard(
                module, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=hold_in_float32(module)
            )
    fully_shard(sharded.value_head, mesh=mesh)  # in float32 beside any trunk: what is gathered at once has one dtype
    fully_shard(sharded, mesh=mesh, mp_policy=hold_in_float32(sharded))
    return sharded


def hold_in_float32(module: torch.nn.Module) -> MixedPrecisionPolicy:
    """Hold what a module trains in few bits in float32 from now on; how it is to compute as it did."""
    trained = [p for p in module.parameters() if p.requires_grad and torch.finfo(p.dtype).bits < 32]
    if not trained:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    dtype = trained[0].dtype
    for parameter in trained:
        parameter.data = parameter.float()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def gather_tensor(x: Tensor) -> Tensor:
    """The whole of a tensor, on every rank."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_on_rank0(x: Tensor) -> Tensor | None:
    """The whole of a tensor in main memory, on rank 0 alone; every rank calls. What is not sharded stays as it is."""
    if not isinstance(x, DTensor):
        return x
    whole = x.full_tensor()
    return whole.cpu() if rank() == 0 else None


def shard_like(x: Tensor, pattern: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have, spread as another of the same shape is."""
    if not isinstance(pattern, DTensor) or x.shape != pattern.shape:
        return x
    return distribute_tensor(x.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def gather_moments(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's `state_dict`, whole on rank 0."""
    return state | {"state": {i: {k: gather_on_rank0(v) for k, v in s.items()} for i, s in state["state"].items()}}


def shard_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole `state_dict`, spread as the parameters are that it steps."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {i: {k: shard_like(v, parameters[i]) for k, v in s.items()} for i, s in state["state"].items()}
    return state | {"state": moments}
