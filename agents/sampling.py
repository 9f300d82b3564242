"""Writing: sample answers token by token, each read once into a KV cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from agents.policy import TransformerPolicy
from textenv.causal_lm import KVReader
from textenv.process import TextProcess, Texts


class Written(NamedTuple):
    """B texts that have ended: `input_ids`, `attention_mask` [B, L]; of each token log pi and, if it was asked on the
    way, log pi_ref [B, T_max]; what was allowed [B, T_max, V], or None where nothing is masked."""

    input_ids: Tensor
    attention_mask: Tensor
    log_probs: Tensor
    ref_log_probs: Tensor | None
    action_mask: Tensor | None


def write(policy: TransformerPolicy, process: TextProcess, texts: Texts, generator: torch.Generator) -> Written:
    """Sample until every text has ended: one token of each row a step, each read once into the KV cache."""
    device, width, horizon = policy.device, process.prompt_width, process.max_new_tokens
    ids = torch.as_tensor(texts.input_ids, device=device).clone()
    attention = torch.as_tensor(texts.attention_mask, device=device).clone()
    time = torch.as_tensor(texts.time, device=device).clone()
    is_eos = torch.as_tensor(process.is_eos, device=device)
    rows, live = torch.arange(len(ids), device=device), torch.ones(len(ids), dtype=torch.bool, device=device)
    log_probs = torch.zeros(len(ids), horizon, device=device)
    stepwise = not (process.full_support and hasattr(process.reference, "token_log_probs"))
    ref_log_probs = torch.zeros_like(log_probs)
    action_mask = None
    if not process.full_support:
        action_mask = torch.ones(len(ids), horizon, process.vocab_size, dtype=torch.bool, device=device)

    reader = KVReader(policy.model)
    logits = reader.read(ids, attention).logits[:, -1]
    while True:
        allowed = None
        if stepwise:
            known = torch.as_tensor(process.reference.log_probs(ids.cpu().numpy(), attention.cpu().numpy()))
            known = known.to(device)
            if action_mask is not None:
                allowed = (known > -torch.inf) | ~live[:, None]
                action_mask[rows[live], time[live]] = allowed[live]
        distribution = policy.log_softmax(logits, allowed)
        token = torch.multinomial(distribution.exp(), 1, generator=generator).squeeze(1)
        here, now = rows[live], time[live]
        ids[here, width + now] = token[live]
        attention[here, width + now] = 1
        log_probs[here, now] = distribution[here, token[live]]
        if stepwise:
            ref_log_probs[here, now] = known[here, token[live]].float()
        time = time + live
        live = live & ~is_eos[token] & (time < horizon)
        if not live.any():
            break
        logits = reader.append(token, live).logits[:, -1]
    return Written(ids, attention, log_probs, ref_log_probs if stepwise else None, action_mask)


def new_generator(device: torch.device | str, seed: int | None = None) -> torch.Generator:
    """A generator of its own on `device`, so that no global one is touched; seeded by the system if `seed` is None."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
