"""Writing: sample answers token by token, each read once into a KV cache."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.policy import TransformerPolicy
from textenv import TextMDP, TextState
from textenv.lm import CachedDecoder

# A text that has ended costs as much as another until it is left out, which copies the cache of those that go on: worth
# it when half have ended, and so many that their share of a step shows beside what any step costs.
MIN_FINISHED_ROWS = 16


class Generation(NamedTuple):
    """B texts that have ended, as a sampler hands them back; T is the process's `max_new_tokens`."""

    input_ids: Tensor
    """int64 [B, W + T]."""
    attention_mask: Tensor
    """1 on the tokens, [B, W + T]."""
    log_probs: Tensor
    """log pi of each token that was written, as it was sampled, [B, T]; 0 elsewhere."""
    ref_log_probs: Tensor | None = None
    """log pi_ref of them, [B, T], if it was asked on the way; else it is asked afterwards."""
    action_mask: Tensor | None = None
    """What was allowed, bool [B, T, V], if that was asked on the way."""
    values: Tensor | None = None
    """V(s_t) of the policy as it is, [B, T], if it was read on the way; else a parallel pass reads it afterwards, where
    it is wanted. What stands where nothing was written is not used."""


class Sampler(Protocol):
    """Beginnings of texts in, ids and log-probabilities out: the one thing that an agent asks of what generates.

    It samples from `policy.log_softmax(logits, mask)`, where the mask forbids what the reference gives probability 0
    (nothing, if `mdp.full_support`), and ends a text at `mdp.is_eos` or after `max_new_tokens`.
    """

    def __call__(
        self, policy: TransformerPolicy, mdp: TextMDP, texts: TextState, generator: torch.Generator
    ) -> Generation: ...


def sample(policy: TransformerPolicy, mdp: TextMDP, texts: TextState, generator: torch.Generator) -> Generation:
    """Sample until every text has ended: one token of each row a step, each read once into the KV cache."""
    device, width, horizon = policy.device, mdp.prompt_width, mdp.max_new_tokens
    # one column more than there are tokens, where texts that have ended go on writing
    ids = F.pad(torch.as_tensor(texts.input_ids, device=device), (0, 1))
    attention = F.pad(torch.as_tensor(texts.attention_mask, device=device), (0, 1))
    log_probs = torch.zeros(len(ids), horizon + 1, device=device)
    is_eos = torch.as_tensor(mdp.is_eos, device=device)
    ref_log_probs = action_mask = None
    if not mdp.full_support:  # what is forbidden is known once the reference is asked, and then so is the rest
        ref_log_probs = torch.zeros_like(log_probs)
        action_mask = torch.ones(len(ids), horizon + 1, mdp.vocab_size, dtype=torch.bool, device=device)

    # `rows` are the texts that the decoder holds, `time` says where each of them is: the horizon when it has ended
    rows, time = torch.arange(len(ids), device=device), torch.as_tensor(texts.time, device=device)
    decoder = CachedDecoder(policy.model)
    logits = decoder.prefill(ids, attention).logits[:, -1]
    while True:
        allowed = None
        if action_mask is not None:
            asked = mdp.reference.log_probs(*(x[:, :-1].cpu().numpy() for x in (ids, attention)))
            known = torch.as_tensor(asked, device=device)[rows]
            allowed = (known > -torch.inf) | (time == horizon)[:, None]
            action_mask[rows, time] = allowed
        token, log_prob = policy.sample(logits, allowed, generator)
        ids[rows, width + time], attention[rows, width + time], log_probs[rows, time] = token, 1, log_prob
        if ref_log_probs is not None:
            ref_log_probs[rows, time] = known.gather(1, token[:, None]).squeeze(1).float()
        time = (time + 1).clamp(max=horizon).masked_fill(is_eos[token], horizon)
        live = time < horizon
        going = int(live.sum())
        if going == 0:
            break
        if len(live) - going >= max(going, MIN_FINISHED_ROWS):
            decoder.select_rows(live)
            rows, time, token, live = rows[live], time[live], token[live], live[live]
        logits = decoder.decode_step(token, live).logits[:, -1]
    found = (ids, attention, log_probs, ref_log_probs, action_mask)
    return Generation(*(x if x is None else x[:, :-1] for x in found))  # type: ignore[arg-type]


def new_generator(device: torch.device | str, seed: int | None = None) -> torch.Generator:
    """A generator of its own on `device`, so that no global one is touched; seeded by the system if `seed` is None."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
