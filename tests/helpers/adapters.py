"""LoRA adapters for the tests. peft is imported when a function is called, so that its absence can skip a test."""

from __future__ import annotations

from typing import Any

import torch

from agents.policy import TransformerPolicy


def config(**settings: Any) -> Any:
    """An adapter on every linear layer."""
    import peft

    return peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings))


def adapted(env: Any, scale: float = 0.0, **settings: Any) -> TransformerPolicy:
    """A policy that is an adapter, perturbed by noise of this scale."""
    policy = TransformerPolicy.for_env(env, lora=config(), **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return policy
