"""The loop sampler: samples completions token by token with a KV cache."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.policy import TransformerPolicy, random_sources
from textenv import TextMDP, TextState
from textenv.lm import is_accelerator, new_decoder

# A finished row costs as much as a live one until it is dropped, which copies the cache of the live rows. That pays off
# once half of the rows have finished, and at least so many that they matter beside the fixed cost of a step.
MIN_FINISHED_ROWS = 16
# Decode steps between checks for live rows on an accelerator: in a check the host waits for it and launches nothing.
# On the CPU each step is checked: nothing waits, and the sooner rows are dropped the better.
CHECK_INTERVAL = 8


class Generation(NamedTuple):
    """B finished sequences, as a sampler returns them; T is the MDP's `max_new_tokens`."""

    input_ids: Tensor
    """int64 [B, W + T]."""
    attention_mask: Tensor
    """1 on the tokens, [B, W + T]."""
    log_probs: Tensor
    """log pi of each sampled token, under the distribution it was sampled from, [B, T]; 0 elsewhere."""
    ref_log_probs: Tensor | None = None
    """log pi_ref of the sampled tokens, [B, T]; None where `collect` is to compute it."""
    action_mask: Tensor | None = None
    """The allowed tokens, bool [B, T, V]; None where `collect` is to compute it, with `ref_log_probs`."""
    values: Tensor | None = None
    """V(s_t) of the current policy, [B, T], ignored where no token was sampled; None where `collect` is to compute it,
    in a separate pass, if it needs values."""


class Sampler(Protocol):
    """Samples completions: given initial states, returns ids and log-probabilities. Agents take any sampler.

    It samples from pi as `policy.log_softmax` defines it. A mask forbids the tokens with reference probability 0
    (none, if `mdp.full_support`). A completion has at least one token, and ends at its first token of `mdp.is_eos` or
    after `max_new_tokens`; the columns after it have attention_mask 0. Prompts, and prefixes of completions, stay.
    """

    def __call__(
        self, policy: TransformerPolicy, mdp: TextMDP, state: TextState, generator: torch.Generator
    ) -> Generation: ...


def sample(policy: TransformerPolicy, mdp: TextMDP, state: TextState, generator: torch.Generator) -> Generation:
    """Samples until all completions have ended: one decode step per token, finished rows dropped now and then."""
    device, width, horizon = policy.device, mdp.prompt_width, mdp.max_new_tokens
    # one extra column, which takes the tokens of finished rows that have not been dropped yet
    ids = F.pad(torch.as_tensor(state.input_ids, device=device), (0, 1))
    attention = F.pad(torch.as_tensor(state.attention_mask, device=device), (0, 1))
    log_probs = torch.zeros(len(ids), horizon + 1, device=device)
    is_eos, one = torch.as_tensor(mdp.is_eos, device=device), torch.ones_like(attention[0, 0])
    ref_log_probs = action_mask = None
    if not mdp.full_support:  # the mask comes from pi_ref(.|s_t), so its log-probabilities are kept as well
        ref_log_probs = torch.zeros_like(log_probs)
        action_mask = torch.ones(len(ids), horizon + 1, mdp.vocab_size, dtype=torch.bool, device=device)
    interval = CHECK_INTERVAL if is_accelerator(device) and action_mask is None else 1

    # `rows` are the rows that the decoder holds; `time` is t of each, or the horizon once it has finished
    rows, time = torch.arange(len(ids), device=device), torch.as_tensor(state.time, device=device)
    decoder = new_decoder(policy.model)
    logits = decoder.prefill(torch.as_tensor(state.input_ids), torch.as_tensor(state.attention_mask)).logits[:, -1]
    steps = horizon - int(state.time.min())
    for step in range(steps):
        if step % interval == 0:
            sources = random_sources(generator, min(interval, steps - step), len(rows), device)
        allowed = None
        if action_mask is not None:
            all_ref_log_probs = mdp.reference.log_probs(*(x[:, :-1].cpu().numpy() for x in (ids, attention)))
            next_ref_log_probs = torch.as_tensor(all_ref_log_probs, dtype=torch.float32, device=device)[rows]
            allowed = (next_ref_log_probs > -torch.inf) | (time == horizon)[:, None]
            action_mask[rows, time] = allowed
        token, log_prob = policy.sample(logits, allowed, sources[step % interval])
        column = width + time
        ids[rows, column], attention[rows, column], log_probs[rows, time] = token, one, log_prob
        if ref_log_probs is not None:
            ref_log_probs[rows, time] = next_ref_log_probs.gather(1, token[:, None]).squeeze(1)
        time = (time + 1).clamp(max=horizon).masked_fill(is_eos[token], horizon)
        live = time < horizon
        if step + 1 == steps:
            break
        if (step + 1) % interval == 0:
            num_live = int(live.sum())
            if num_live == 0:
                break
            if len(live) - num_live >= max(num_live, MIN_FINISHED_ROWS):
                kept = live.int().argsort(descending=True, stable=True)[:num_live]  # `nonzero` waits for the device
                decoder.select_rows(kept)
                rows, time, token, live = rows[kept], time[kept], token[kept], live[kept]
        logits = decoder.decode_step(token, live).logits[:, -1]
    tensors = (ids, attention, log_probs, ref_log_probs, action_mask)
    return Generation(*(x if x is None else x[:, :-1] for x in tensors))  # type: ignore[arg-type]


def new_generator(device: torch.device | str, seed: int | None = None) -> torch.Generator:
    """Returns a new generator on `device`, independent of the global one; the system seeds it if `seed` is None."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
