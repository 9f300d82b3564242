"""The second sampler: transformers' `generate`.

Slower than `agents.sampling.write`; it shows how what somebody else wrote, an inference server say, is put in its
place: `agent.sampler = generate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from agents.policy import TransformerPolicy
from agents.sampling.loop import Generation
from textenv import TextMDP, TextState
from textenv.lm import base_model, pack_left


def generate_sampler(
    policy: TransformerPolicy, mdp: TextMDP, texts: TextState, generator: torch.Generator
) -> Generation:
    """Sample until every text has ended, by `policy.model.generate`.

    pi is what `policy.log_softmax` says, whoever samples: temperature and masks go in as a logits processor, log pi is
    read off the scores that were sampled from, and the model's own `generation_config` is left out.
    """
    device, width, horizon = policy.device, mdp.prompt_width, mdp.max_new_tokens
    ids = torch.as_tensor(texts.input_ids, device=device).clone()
    attention = torch.as_tensor(texts.attention_mask, device=device).clone()
    time = torch.as_tensor(texts.time, device=device)
    is_eos = torch.as_tensor(mdp.is_eos, device=device)
    packed, packed_attention = pack_left(ids, attention)
    known: list[Tensor] = []  # log pi_ref [B, V], a step each, where it forbids something

    def scores(seen: Tensor, logits: Tensor) -> Tensor:
        if mdp.full_support:
            return policy.log_softmax(logits)
        mask = torch.ones_like(seen)
        mask[:, : packed.shape[1]] = packed_attention
        known.append(torch.as_tensor(mdp.reference.log_probs(seen.cpu().numpy(), mask.cpu().numpy())).to(device))
        allowed = known[-1] > -torch.inf
        return policy.log_softmax(logits, allowed | ~allowed.any(dim=1, keepdim=True))  # an ended text: any token

    # generate draws from the global generator, which stays as it was
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), no_generation_config(policy.model):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        said = policy.model.generate(
            input_ids=packed,
            attention_mask=packed_attention.long(),
            logits_processor=LogitsProcessorList([scores]),
            do_sample=True,
            top_k=0,
            max_new_tokens=horizon - int(time.min()),
            eos_token_id=mdp.eos_token_ids or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )

    log_probs, ref_log_probs = torch.zeros(2, len(ids), horizon, device=device)
    action_mask = torch.ones(len(ids), horizon, mdp.vocab_size, dtype=torch.bool, device=device)
    live = torch.ones_like(time, dtype=torch.bool)
    for step, (token, score) in enumerate(zip(said.sequences[:, packed.shape[1] :].T, said.scores, strict=True)):
        here, now, chosen = live.nonzero().squeeze(1), (time + step)[live], token[live]
        ids[here, width + now], attention[here, width + now] = chosen, 1
        log_probs[here, now] = score[here, chosen].float()
        if known:
            ref_log_probs[here, now] = known[step][here, chosen].float()
            action_mask[here, now] = known[step][here] > -torch.inf
        live = live & ~is_eos[token] & (time + step + 1 < horizon)
    return Generation(ids, attention, log_probs, *((ref_log_probs, action_mask) if known else ()))


@contextmanager
def no_generation_config(model: Any) -> Iterator[None]:
    """Without what a checkpoint says of how to generate: an adapter's, and that of the model within."""
    models = {model, base_model(model)}
    saved = [each.generation_config for each in models]
    for each in models:
        each.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for each, config in zip(models, saved, strict=True):
            each.generation_config = config
