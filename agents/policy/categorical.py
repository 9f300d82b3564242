"""Sampling from categorical distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agents.functional import widest_float

LARGE_VOCABULARY = 256  # from this V on, `sample_categorical` draws one random number per row instead of V


def sample_categorical(probs: Tensor, source: torch.Generator | Tensor) -> Tensor:
    """Samples one token per row of probabilities [B, V]; returns int64 [B].

    torch.multinomial draws a random number per token of the vocabulary, a third of the time of sampling at V = 5000.
    For a large V one number per row is drawn instead: the token is the first whose cumulative probability exceeds it.
    The same is done on other devices than the CPU, where multinomial makes the host wait in some versions of torch.

    Where probabilities are nan the token is arbitrary; their log-probability shows it, and `collect` raises for it.

    Args:
        probs: probabilities [B, V].
        source: a generator, or numbers in [0, 1), [B, 1], in `widest_float` of their device.
    """
    if isinstance(source, torch.Generator):
        if probs.shape[1] < LARGE_VOCABULARY and probs.device.type == "cpu":
            try:
                return torch.multinomial(probs, 1, generator=source).squeeze(1)
            except RuntimeError:
                if bool(probs.isfinite().all()):
                    raise
        source = _random_numbers(source, 1, len(probs), probs.device)[0]
    # cumsum in place, since this is the peak memory of sampling; copy=True spares `probs` where they are float64
    cumulative = probs.to(source.dtype, copy=True).cumsum_(dim=1)
    tokens = torch.searchsorted(cumulative, source * cumulative[:, -1:], right=True).squeeze(1)
    return tokens.clamp_(max=probs.shape[1] - 1)  # out of range where probabilities are nan


def random_sources(
    generator: torch.Generator, steps: int, rows: int, device: torch.device
) -> Sequence[torch.Generator | Tensor]:
    """Returns a source for each of the next calls of `sample_categorical` on an accelerator, with `rows` rows each.

    The numbers of all steps are drawn in one kernel: the same numbers in the same order. Any device takes one step.
    """
    return [generator] if steps == 1 else _random_numbers(generator, steps, rows, device).unbind()


def _random_numbers(generator: torch.Generator, steps: int, rows: int, device: torch.device) -> Tensor:
    return torch.rand(steps, rows, 1, generator=generator, device=device, dtype=widest_float(device))
