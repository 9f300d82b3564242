"""Gradient checkpointing: the backward pass recomputes activations from each layer's input, which alone is stored.

Transformers checkpoints a layer in training mode. A policy stays in eval mode, because of dropout. So the layers, but
not the modules inside them, are in training mode during a forward pass with gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def enable_checkpointing(policy: Any) -> None:
    """Switches gradient checkpointing on in a `TransformerPolicy`; raises a ValueError if its model has none."""
    if not policy.model.supports_gradient_checkpointing:
        raise ValueError(f"{type(policy.model).__name__} has no gradient checkpointing.")
    for model in filter(None, (policy.model, policy.critic)):
        newer = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.20
        (newer or model.gradient_checkpointing_enable)({"use_reentrant": False})
    if policy.gradient_checkpointing:
        return  # the hooks are there
    for trunk in filter(None, (policy.trunk, policy.critic)):
        for layer in _layers(trunk):
            if isinstance(getattr(layer, "dropout", None), float):  # OPT's layers apply dropout themselves
                layer.dropout = 0.0
        trunk.register_forward_pre_hook(_before_forward)
        trunk.register_forward_hook(_after_forward, always_call=True)
    policy.gradient_checkpointing = True
    policy.share_prefixes = False  # transformers drops the KV cache of a checkpointed layer


def _before_forward(trunk: nn.Module, inputs: object) -> None:
    if torch.is_grad_enabled():
        for layer in _layers(trunk):
            layer.training = True


def _after_forward(trunk: nn.Module, inputs: object, output: object) -> None:
    for layer in _layers(trunk):
        layer.training = False


def _layers(trunk: nn.Module) -> list[Any]:
    return [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
