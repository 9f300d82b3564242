"""Policies for the tests."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.policy import TransformerPolicy


def random_policy(env: Any, seed: int = 0, scale: float = 0.4, **settings: Any) -> TransformerPolicy:
    """A tiny GPT-2 with arbitrary weights in float64, far from the reference, and an arbitrary value head.

    `settings` are those of the model (`resid_pdrop=0.5`) and of the policy (`temperature`, `separate_critic`).
    """
    mdp = env.unwrapped.mdp
    length = mdp.prompt_width + mdp.max_new_tokens
    return copy.deepcopy(_random_policy(mdp.vocab_size, length, tuple(mdp.eos_token_ids), seed, scale, **settings))


@cache  # building one costs as much as ten copies
def _random_policy(
    vocab_size: int, length: int, eos: tuple[int, ...], seed: int, scale: float, **settings: Any
) -> TransformerPolicy:
    own = {name: settings.pop(name) for name in ("temperature", "separate_critic") if name in settings}
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=16,
        n_inner=32,
        n_layer=1,
        n_head=2,
        n_positions=length,
        bos_token_id=None,
        eos_token_id=list(eos),
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
