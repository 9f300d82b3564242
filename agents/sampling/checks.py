"""Checks of a batch of completions: what a sampler returned, log pi, and the rewards."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.errors import Diverged
from agents.sampling.loop import Generation
from textenv import TextMDP, TextState


def validate_generation(generation: Generation, mdp: TextMDP, count: int, device: torch.device) -> Generation:
    """Returns what a sampler returned, as tensors of the dtypes of `Generation` on `device`.

    Raises:
        ValueError: a tensor has another shape than `Generation` defines.
    """
    width, horizon = mdp.prompt_width, mdp.max_new_tokens
    sequences, completions = (count, width + horizon), (count, horizon)
    shapes = {"input_ids": sequences, "attention_mask": sequences, "action_mask": (*completions, mdp.vocab_size)}
    for name, value in generation._asdict().items():
        expected = shapes.get(name, completions)
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(f"A sampler must return {name} of shape {expected}, got {tuple(value.shape)}.")
    types = {"input_ids": torch.int64, "log_probs": torch.float32, "values": torch.float32, "action_mask": torch.bool}
    return generation._replace(
        **{
            name: torch.as_tensor(value, dtype=types.get(name), device=device)
            for name, value in generation._asdict().items()
            if value is not None
        }
    )


def check_log_probs(sampled: Tensor, state: TextState) -> None:
    """Checks the log-probabilities of sampled tokens, [B, T].

    Raises:
        Diverged: one is not finite; the message has the first prompt, with control characters escaped.
    """
    log_probs = sampled.cpu().numpy()
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
