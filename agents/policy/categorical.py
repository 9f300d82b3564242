"""Sampling from categorical distributions."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_categorical(probs: Tensor, source: torch.Generator | Tensor) -> Tensor:
    """A token of each row of probabilities [B, V], by a generator or by numbers in [0, 1), float64 [B, 1].

    torch.multinomial draws a random number for each word, which is a third of the time of sampling where words are many
    (5000). There one number a row is drawn: the token is the first whose cumulated probability exceeds it. So on a GPU,
    which multinomial makes the host wait for in some versions of torch.
    """
    if isinstance(source, torch.Generator):
        if probs.shape[1] < LARGE_VOCABULARY and not probs.is_cuda:
            return torch.multinomial(probs, 1, generator=source).squeeze(1)
        source = torch.rand(len(probs), 1, generator=source, device=probs.device, dtype=torch.float64)
    # in place, for this is the most that sampling holds; on a copy also where probabilities are float64 themselves
    heights = probs.to(torch.float64, copy=True).cumsum_(dim=1)
    chosen = torch.searchsorted(heights, source * heights[:, -1:], right=True).squeeze(1)
    return chosen.clamp_(max=probs.shape[1] - 1)  # beyond it where probabilities are nan, which `collect` tells of


LARGE_VOCABULARY = 256  # from here on `sample_categorical` does not draw a random number a word
