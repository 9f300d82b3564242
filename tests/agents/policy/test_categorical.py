"""Sampling one token per row from a categorical distribution."""

from __future__ import annotations

import torch
from scipy.stats import chi2

from agents.policy.categorical import LARGE_VOCABULARY, random_sources, sample_categorical
from agents.sampling import new_generator


def test_sampling_from_a_large_vocabulary() -> None:
    """Chi-square test of the method for large V; tokens of probability 0 are never sampled, not even at the ends."""
    generator = new_generator("cpu", 0)
    probs = torch.rand(LARGE_VOCABULARY, generator=generator) ** 4
    probs[[0, 7, 8, LARGE_VOCABULARY - 1]] = 0.0
    probs /= probs.sum()
    drawn = sample_categorical(probs.expand(60_000, -1), generator)
    counts = torch.bincount(drawn, minlength=LARGE_VOCABULARY)
    assert counts[probs == 0].sum() == 0
    often = 60_000 * probs >= 5
    statistic = float((((counts - 60_000 * probs) ** 2) / (60_000 * probs))[often].sum())
    assert chi2.sf(statistic, int(often.sum()) - 1) > 1e-3


def test_numbers_that_are_drawn_ahead_are_those_of_each_step() -> None:
    """Seven steps of five rows in one draw: the same tokens, and the same state of the generator."""
    probs = torch.rand(7, 5, LARGE_VOCABULARY, generator=new_generator("cpu", 1)).softmax(dim=-1)
    ahead, each = new_generator("cpu", 2), new_generator("cpu", 2)
    sources = random_sources(ahead, 7, 5, probs.device)
    for step in range(7):
        assert torch.equal(sample_categorical(probs[step], sources[step]), sample_categorical(probs[step], each))
    assert torch.equal(ahead.get_state(), each.get_state())
    assert random_sources(ahead, 1, 5, probs.device) == [ahead]
