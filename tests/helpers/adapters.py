"""LoRA adapters for the tests. peft is imported when a function is called, so that its absence can skip a test."""

from __future__ import annotations

from typing import Any

import torch

from agents.policy import TransformerPolicy
from tests.helpers.models import model


def config(**settings: Any) -> Any:
    """An adapter on every linear layer."""
    import peft

    return peft.LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | settings))


def adapted(env: Any, scale: float = 0.0, **settings: Any) -> TransformerPolicy:
    """A policy that is an adapter, perturbed by noise of this scale."""
    return perturbed(TransformerPolicy.for_env(env, lora=config(), **settings), scale, "lora_")


def perturbed(module: Any, scale: float = 0.3, name: str = "") -> Any:
    """The module, with noise of this scale in its trainable parameters with `name` in theirs."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each, parameter in module.named_parameters():
            if parameter.requires_grad and name in each:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def peft_model(kind: str, adapter: Any = None, **settings: Any) -> Any:
    """A `PeftModel` around a small random model, far from what it computes without its adapter."""
    import peft

    return perturbed(peft.get_peft_model(model(kind), adapter or config(**settings))).eval()


def layers(kind: str) -> tuple[str, str]:
    """The names of an attention layer and of the input embeddings in a model of `tests.helpers.models.CONFIGS`."""
    return ("c_attn", "wte") if kind == "gpt2" else ("q_proj", "embed_tokens")


def sound_settings(kind: str) -> dict[str, dict[str, Any]]:
    """Settings of LoRA whose checkpoint must be the policy, by what is particular about them.

    Input and output embeddings are one matrix in gpt2 and qwen2, and two in llama.
    """
    attention, embeddings = layers(kind)
    plain = {"target_modules": [attention]}
    return {
        "all linear layers": {"target_modules": "all-linear"},
        "output": {"target_modules": [attention, "lm_head"]},
        "input": {"target_modules": [attention, embeddings]},
        "input and output": {"target_modules": [embeddings, "lm_head"]},
        "whole output": plain | {"modules_to_save": ["lm_head"]},
        "whole input": plain | {"modules_to_save": [embeddings]},
        "whole input, tied": plain | {"modules_to_save": [embeddings], "ensure_weight_tying": True},
        "whole input and output": plain | {"modules_to_save": [embeddings, "lm_head"]},
        "tokens": plain | {"trainable_token_indices": [1, 3]},
        "tokens of the output": plain | {"trainable_token_indices": {"lm_head": [1, 3]}},
        "dora": {"target_modules": "all-linear", "use_dora": True},
        "rslora": plain | {"use_rslora": True},
        "ranks": {"target_modules": "all-linear", "rank_pattern": {attention: 2}, "alpha_pattern": {attention: 32}},
        "one layer": plain | {"layers_to_transform": [1]},
        "a norm": plain | {"modules_to_save": ["ln_f" if kind == "gpt2" else "norm"]},
        "not zero at first": plain | {"init_lora_weights": False},
        "a parameter": {"target_modules": [], "target_parameters": [PARAMETER.get(kind, "mlp.down_proj.weight")]},
    }


PARAMETER = {"gpt2": "mlp.c_fc.weight"}
