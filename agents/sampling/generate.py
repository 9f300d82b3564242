"""The generate sampler: samples with transformers' `generate`.

It is slower than `agents.sampling.loop`. It shows how to plug in another generator, an inference server for example:
`agent.sampler = generate_sampler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from agents.policy import TransformerPolicy
from agents.sampling.loop import Generation
from textenv import TextMDP, TextState
from textenv.lm import CausalLM, base_model, forked_random_state, pack_left, supports_cache


def generate_sampler(
    policy: TransformerPolicy, mdp: TextMDP, state: TextState, generator: torch.Generator
) -> Generation:
    """Samples until all completions have ended, with `policy.model.generate`.

    pi is defined by `policy.log_softmax` for every sampler. So temperature and masks are applied by a logits processor,
    log pi comes from the scores that were sampled from, and the model's own `generation_config` is ignored.

    Raises:
        ValueError: padding or a KV cache changes what the model computes.
    """
    if not supports_cache(policy.model):
        raise ValueError(
            f"generate pads on the left and decodes through a KV cache, which changes what a "
            f"{type(base_model(policy.model)).__name__} computes: use the loop sampler (--sampler loop), the default."
        )
    if len(np.unique(state.time)) > 1:
        return _by_time(policy, mdp, state, generator)
    device, width, horizon = policy.device, mdp.prompt_width, mdp.max_new_tokens
    ids = torch.as_tensor(state.input_ids, device=device).clone()
    attention = torch.as_tensor(state.attention_mask, device=device).clone()
    time = torch.as_tensor(state.time, device=device)
    is_eos = torch.as_tensor(mdp.is_eos, device=device)
    packed, packed_attention = pack_left(ids, attention)
    next_ref_log_probs: list[Tensor] = []  # log pi_ref(.|s_t) [B, V] of each step, where it masks tokens
    diverged = torch.zeros(len(ids), dtype=torch.bool, device=device)

    def process_logits(input_ids: Tensor, logits: Tensor) -> Tensor:
        log_probs = masked_log_probs(input_ids, logits)
        wrong = log_probs.isnan().any(dim=1)
        diverged.logical_or_(wrong)
        return log_probs.masked_fill(wrong[:, None], 0.0)  # torch's multinomial must not see nan

    def masked_log_probs(input_ids: Tensor, logits: Tensor) -> Tensor:
        if mdp.full_support:
            return policy.log_softmax(logits)
        mask = torch.ones_like(input_ids)
        mask[:, : packed.shape[1]] = packed_attention
        ref = mdp.reference.log_probs(input_ids.cpu().numpy(), mask.cpu().numpy())
        next_ref_log_probs.append(torch.as_tensor(ref, dtype=torch.float32, device=device))
        allowed = next_ref_log_probs[-1] > -torch.inf
        return policy.log_softmax(logits, allowed | ~allowed.any(dim=1, keepdim=True))  # a finished row: any token

    # generate draws from the global generator of its device
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with forked_random_state(device, seed), no_generation_config(policy.model):
        output = policy.model.generate(
            input_ids=packed,
            attention_mask=packed_attention.long(),
            logits_processor=LogitsProcessorList([process_logits]),
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
    for step, (token, scores) in enumerate(zip(output.sequences[:, packed.shape[1] :].T, output.scores, strict=True)):
        rows, now, action = live.nonzero().squeeze(1), (time + step)[live], token[live]
        ids[rows, width + now], attention[rows, width + now] = action, 1
        log_probs[rows, now] = scores[rows, action].float()
        if next_ref_log_probs:
            ref_log_probs[rows, now] = next_ref_log_probs[step][rows, action]
            action_mask[rows, now] = next_ref_log_probs[step][rows] > -torch.inf
        live = live & ~is_eos[token]
    log_probs[diverged] = torch.nan  # `collect` raises
    return Generation(ids, attention, log_probs, *((ref_log_probs, action_mask) if next_ref_log_probs else ()))


def _by_time(policy: TransformerPolicy, mdp: TextMDP, state: TextState, generator: torch.Generator) -> Generation:
    """Samples the rows of each time t apart.

    generate continues with every row until the last one has ended, and would leave the model's positions in a row whose
    completion was longer at first.
    """
    groups = [np.flatnonzero(state.time == time) for time in np.unique(state.time)]
    parts = zip(*(generate_sampler(policy, mdp, state[rows], generator) for rows in groups), strict=True)
    order = torch.as_tensor(np.concatenate(groups).argsort(), device=policy.device)
    return Generation(*(None if each[0] is None else torch.cat(each)[order] for each in parts))  # type: ignore[arg-type]


@contextmanager
def no_generation_config(model: CausalLM) -> Iterator[None]:
    """Replaces the generation config of a checkpoint by the default: an adapter's, and that of its base model."""
    models = {model, base_model(model)}
    saved = [each.generation_config for each in models]
    for each in models:
        each.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for each, config in zip(models, saved, strict=True):
            each.generation_config = config
