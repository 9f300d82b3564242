"""Sharding: weights, gradients and the optimizer's state distributed over the ranks with FSDP2 (`fully_shard`).

Ranks sample completions of different lengths, so they run different numbers of forward passes. With sharded weights,
which are gathered layer by layer, one rank would wait for another while sampling. So a sharded copy of the policy is
trained, in lockstep on all ranks. Each rank keeps the whole policy for sampling and evaluation, and copies the trained
weights into it after each step (`agents.training.master_weights`).

The copy is held in float32 and computes in the policy's dtype. Its gradients are averaged in float32 once per
micro-batch, since no rank has memory for whole gradients. With Adam, on each of R ranks a trained parameter in bfloat16
then takes 2 + 16 / R bytes, in float32 4 + 16 / R; with whole weights on each rank it takes 18 and 16.

If nothing is sharded, every function here but `shard` and `hold_in_float32` is a no-op.
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
    """Returns a sharded copy of the policy, for `Agent.distribute`.

    Args:
        policy: not modified.
        reshard_after_forward: free each layer's weights after the forward pass and gather them again in the backward
            pass, rather than keep them.

    Raises:
        ValueError: the policy was compiled; gathering layers would break its graph into pieces.
    """
    if policy._compiled_call_impl is not None:
        raise ValueError("A compiled policy cannot be sharded: do not call its compile().")
    mesh = init_device_mesh(policy.device.type, (world_size(),))
    sharded = copy.deepcopy(policy)
    # Prefix sharing depends on the prompts: ranks would gather a layer different numbers of times, and hang.
    sharded.share_prefixes = False
    for module in sharded.modules():
        if isinstance(module, GradientCheckpointingLayer):  # the base class of layers in transformers
            fully_shard(
                module, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=hold_in_float32(module)
            )
    fully_shard(sharded.value_head, mesh=mesh)  # float32 beside any trunk: a group has one dtype
    fully_shard(sharded, mesh=mesh, mp_policy=hold_in_float32(sharded))
    return sharded


def hold_in_float32(module: torch.nn.Module) -> MixedPrecisionPolicy:
    """Converts a module's trained bfloat16 parameters to float32; returns the policy to compute in their old dtype."""
    trained = [p for p in module.parameters() if p.requires_grad and torch.finfo(p.dtype).bits < 32]
    if not trained:
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    dtype = trained[0].dtype
    for parameter in trained:
        parameter.data = parameter.float()
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)


def gather_tensor(x: Tensor) -> Tensor:
    """Returns the whole tensor, on every rank."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def gather_on_rank0(x: Tensor) -> Tensor | None:
    """Returns the whole tensor on the CPU of rank 0, None elsewhere; every rank calls it. No-op if not sharded."""
    if not isinstance(x, DTensor):
        return x
    whole = x.full_tensor()
    return whole.cpu() if rank() == 0 else None


def shard_like(x: Tensor, pattern: Tensor) -> Tensor:
    """Returns this rank's shard of a tensor that all ranks have, sharded like `pattern`.

    No-op if `pattern` is not sharded or has another shape (Adam's step count), and for numbers.
    """
    if not isinstance(pattern, DTensor) or not isinstance(x, Tensor) or x.shape != pattern.shape:
        return x
    return distribute_tensor(x.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def gather_moments(state: dict[str, Any]) -> dict[str, Any]:
    """Returns an optimizer's `state_dict` with whole tensors, on rank 0."""
    return state | {"state": {i: {k: gather_on_rank0(v) for k, v in s.items()} for i, s in state["state"].items()}}


def shard_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Returns an optimizer's whole `state_dict` with its tensors sharded like the parameters that it steps."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {i: {k: shard_like(v, parameters[i]) for k, v in s.items()} for i, s in state["state"].items()}
    return state | {"state": moments}
