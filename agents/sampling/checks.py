"""Checks of a batch of completions: what a sampler returned, log pi, and the rewards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.errors import Diverged
from agents.sampling.loop import Generation
from textenv import TextMDP, TextState

LOG_PROB_TOLERANCE = 1e-3  # rounding of a sampler that computes in bfloat16


def validate_generation(generation: Generation, mdp: TextMDP, state: TextState, device: torch.device) -> Generation:
    """Returns what a sampler returned for `state`, as tensors of the dtypes of `Generation` on `device`.

    Raises:
        TypeError: it is no `Generation`.
        ValueError: a tensor has another shape, or a completion breaks a rule of `Sampler`.
        Diverged: log pi of a token is not finite.
    """
    if not isinstance(generation, Generation):
        raise TypeError(f"A sampler must return a Generation, got {type(generation).__name__}.")
    width, horizon = mdp.prompt_width, mdp.max_new_tokens
    sequences, completions = (len(state), width + horizon), (len(state), horizon)
    shapes = {"input_ids": sequences, "attention_mask": sequences, "action_mask": (*completions, mdp.vocab_size)}
    types = {"input_ids": torch.int64, "log_probs": torch.float32, "values": torch.float32, "action_mask": torch.bool}
    tensors: dict[str, Tensor] = {}
    for name, value in generation._asdict().items():
        if value is not None:
            tensors[name] = torch.as_tensor(value, dtype=types.get(name), device=device)
            expected = shapes.get(name, completions)
            if tuple(tensors[name].shape) != expected:
                raise ValueError(f"A sampler must return {name} of shape {expected}, got {tuple(tensors[name].shape)}.")
    generation = generation._replace(**tensors)
    log_probs = generation.log_probs.cpu().numpy()
    check_log_probs(log_probs, state)  # before the reward sees tokens that were not sampled from pi
    check_completions(generation, log_probs, mdp, state)
    return generation


def check_completions(generation: Generation, log_probs: NDArray[np.float32], mdp: TextMDP, state: TextState) -> None:
    """Checks that the completions continue `state` as the MDP's transitions do: otherwise a score would count twice.

    `log_probs` are those of the generation, [B, T], on the host.

    Raises:
        ValueError: a completion breaks a rule of `Sampler`; the message has the rule and the first such completion.
    """
    width, horizon = mdp.prompt_width, mdp.max_new_tokens
    ids, attention = generation.input_ids.cpu().numpy(), generation.attention_mask.cpu().numpy() == 1
    given, tokens, mask = state.attention_mask == 1, ids[:, width:], attention[:, width:]
    length = mask.sum(axis=1)
    known = (tokens >= 0) & (tokens < mdp.vocab_size)
    is_eos = mask & known & mdp.is_eos.take(np.where(known, tokens, 0))
    last = np.arange(horizon) == length[:, None] - 1
    same_prompt = (attention[:, :width] == given[:, :width]).all(axis=1)
    rules = {
        "the prompts and prefixes that it was given": same_prompt & ((ids == state.input_ids) | ~given).all(axis=1),
        "at least one token for each state": length > state.time,
        "completions without a gap in the mask": (mask == (np.arange(horizon) < length[:, None])).all(axis=1),
        f"token ids from 0 to {mdp.vocab_size - 1}": (known | ~mask).all(axis=1),
        "no token after an EOS token": (last | ~is_eos).all(axis=1),
        f"completions that end with an EOS token or have {horizon} tokens": (
            (is_eos & last).any(axis=1) | (length == horizon)
        ),
        "log-probabilities of at most 0": (log_probs <= LOG_PROB_TOLERANCE).all(axis=1),
    }
    for rule, holds in rules.items():
        if not holds.all():
            row = int(np.argmin(holds))
            raise ValueError(
                f"A sampler must return {rule}; completion {row}, of the prompt {state.prompt_text[row]!r:.200}, has "
                f"the tokens {tokens[row].tolist()!r:.200}, the mask {mask[row].astype(int).tolist()!r:.200} and "
                f"log-probabilities of up to {log_probs[row].max():.3g}."
            )


def check_log_probs(log_probs: NDArray[np.float32], state: TextState) -> None:
    """Checks the log-probabilities of sampled tokens, [B, T].

    Raises:
        Diverged: one is not finite; the message has the first prompt, with control characters escaped.
    """
    wrong = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
    if len(wrong):
        time = int(np.flatnonzero(~np.isfinite(log_probs[wrong[0]]))[0])
        raise Diverged(
            f"The policy's probabilities are not finite in {len(wrong)} of {len(log_probs)} completions, first at "
            f"token {time} after the prompt {state.prompt_text[wrong[0]]!r:.200}: the last optimizer steps were too "
            "large."
        )


def check_rewards(rewards: NDArray[np.float64], terms: dict[str, NDArray[np.float64]]) -> None:
    """Checks r_t, [B, T], the sum of the terms of `TextMDP.reward_terms`.

    Raises:
        ValueError: a sum is not finite in float32.
    """
    if not (np.abs(rewards) <= np.finfo(np.float32).max).all():
        largest = {name: float(np.abs(values).max()) for name, values in terms.items()}
        raise ValueError(
            f"A reward must be finite in float32, got {np.abs(rewards).max()}; the largest values of its terms are "
            f"{largest}. Scale the reward, the shaping terms or kl_coef down."
        )


def check_obeys_mask(ref_log_probs: NDArray[np.float32]) -> None:
    """Raises a ValueError if the reference gives a sampled token probability 0; log pi_ref [B, T]."""
    if not np.isfinite(ref_log_probs).all():
        raise ValueError("The sampler returned tokens that the reference gives probability 0: it must obey the mask.")
