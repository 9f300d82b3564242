"""Policies for the tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.policy import TransformerPolicy


def random_policy(env: Any, seed: int = 0, scale: float = 0.4, **settings: Any) -> TransformerPolicy:
    """A tiny GPT-2 with arbitrary weights in float64, far from the reference, and an arbitrary value head.

    `settings` are those of the model (`resid_pdrop=0.5`) and of the policy (`temperature`, `separate_critic`).
    """
    mdp = env.unwrapped.mdp
    own = {name: settings.pop(name) for name in ("temperature", "separate_critic") if name in settings}
    config = GPT2Config(
        vocab_size=mdp.vocab_size,
        n_embd=16,
        n_inner=32,
        n_layer=1,
        n_head=2,
        n_positions=mdp.prompt_width + mdp.max_new_tokens,
        bos_token_id=None,
        eos_token_id=mdp.eos_token_ids,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = TransformerPolicy(GPT2LMHeadModel(config).double(), **own)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))
    return policy
