"""Completions of the reference: their frequencies and log-probabilities beside the enumeration of toys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.brute_force import Completion, all_completions
from tests.helpers.tasks import make, mdp, random_reference, stories, tasks, words
from textenv import TextMDP
from textenv.reward_check.samples import draw_samples, encode_completions, reference_log_probs
from textenv.rewards import FinishedCompletions
from textenv.shaping import length_penalty


def enumerated(arguments: dict[str, Any]) -> dict[Completion, float]:
    """log pi_ref(y|x) of every completion, by single steps of the environment."""
    return {y: sum(log_ref for _, log_ref in steps) for y, steps in all_completions(make(arguments)).items()}


def names(finished: FinishedCompletions) -> list[Completion]:
    """The completions as the enumeration names them."""
    return [(p, tuple(ids)) for p, ids in zip(finished.prompt.tolist(), finished.completion_ids, strict=True)]


@settings(max_examples=15, deadline=None)
@given(tasks(max_vocab=4, max_tokens=3), st.integers(0, 9))
def test_log_probs_are_those_of_the_enumeration(arguments: dict[str, Any], seed: int) -> None:
    """As sampled, and computed for given completions."""
    task, exact = TextMDP(**arguments), enumerated(arguments)
    samples = draw_samples(task, 8, 8, seed)
    expected = [exact[name] for name in names(samples.finished)]
    assert samples.log_probs == pytest.approx(expected)
    assert reference_log_probs(task, samples.finished) == pytest.approx(expected)


def test_what_the_reference_never_samples_has_log_probability_minus_infinity() -> None:
    """Control: every completion that the enumeration has is finite."""
    arguments = words(4, reference=random_reference(4, 3, sparse=True))
    task, exact = TextMDP(**arguments), enumerated(arguments)
    sampled = draw_samples(task, 25, 8, seed=0).finished
    tokens = np.where(np.arange(100)[:, None] < 50, sampled.tokens, sampled.tokens[::-1])  # of any prompt
    length = np.where(np.arange(100) < 50, sampled.length, sampled.length[::-1])
    finished = task.finished(sampled.prompt, sampled.prompt_text, tokens, length)
    found = reference_log_probs(task, finished)
    expected = np.array([exact.get(name, -np.inf) for name in names(finished)])
    assert found == pytest.approx(expected)
    assert 0 < np.isinf(found).sum() <= 50


@pytest.mark.parametrize("sparse", [False, True])
def test_frequencies_are_those_of_the_reference(sparse: bool) -> None:
    """Chi-square over all completions of a prompt. Control: against the completions of another reference."""
    arguments = words(3, prompts=["a", "b b"], max_new_tokens=2, reference=random_reference(3, 5, sparse))
    samples = draw_samples(TextMDP(**arguments), 3000, 8, seed=1)
    found = names(samples.finished)

    def chi_square(exact: dict[Completion, float]) -> float:
        expected = {y: 3000 * np.exp(log_prob) for y, log_prob in exact.items()}
        return sum((found.count(y) - count) ** 2 / count for y, count in expected.items()) / len(expected)

    assert set(found) <= set(enumerated(arguments))
    assert chi_square(enumerated(arguments)) < 2.5
    assert sparse or chi_square(enumerated(arguments | {"reference": random_reference(3, 6, False)})) > 10  # control


def test_prompts_are_evenly_spread_and_their_completions_contiguous() -> None:
    """All of them, where there are not more; the first and the last are among them."""
    task = mdp(prompts=[" ".join("a" * n) for n in range(1, 12)])
    samples = draw_samples(task, 8, 3, seed=0)
    assert samples.finished.prompt.tolist() == [0] * 8 + [5] * 8 + [10] * 8 and samples.num_prompts == 3
    assert draw_samples(task, 8, 99, seed=0).num_prompts == 11
    assert samples.by_prompt(samples.finished.prompt.astype(float)).std(axis=1).tolist() == [0, 0, 0]
    again, other = draw_samples(task, 8, 3, seed=0), draw_samples(task, 8, 3, seed=1)
    assert np.array_equal(again.finished.tokens, samples.finished.tokens)
    assert not np.array_equal(other.finished.tokens, samples.finished.tokens)


def test_chunks_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions of all prompts, in order, with their shaping."""
    monkeypatch.setattr("textenv.reward_check.samples.CHUNK", 7)
    samples = draw_samples(mdp(shaping=[length_penalty(0.25)]), 10, 4, seed=0)
    assert samples.finished.prompt.tolist() == np.repeat(np.arange(4), 10).tolist()
    assert samples.shaping == pytest.approx(-0.25 * samples.finished.length)
    assert samples.log_probs == pytest.approx(reference_log_probs(samples.mdp, samples.finished))
    assert not draw_samples(mdp(), 10, 4, seed=0).shaping.any()  # control


def test_texts_become_completions() -> None:
    """Cut at `max_new_tokens`, with an end token where there is room; None for a word that the tokenizer lacks."""
    task = mdp()
    like = draw_samples(task, 8, 1, seed=0).finished.select(np.arange(4))
    finished = encode_completions(task, like, ["a b", "", "a b a", "b b b b b"])
    assert finished is not None
    assert finished.completion_ids == [[1, 2, 0], [0], [1, 2, 1], [2, 2, 2]]
    assert finished.completions == ["a b", "", "a b a", "b b b"]
    assert encode_completions(task, like.select(np.arange(1)), ["a zebra"]) is None


def test_a_language_model_gives_the_same_in_one_pass_as_token_by_token(assets: Path) -> None:
    """Log-probabilities as sampled with a KV cache, and of the same completions in parallel. Control: of others."""
    task = TextMDP(**stories(assets, max_new_tokens=6))
    samples = draw_samples(task, 8, 3, seed=0)
    found = reference_log_probs(task, samples.finished)
    assert found == pytest.approx(samples.log_probs, abs=1e-3)
    others = samples.finished.select(np.roll(np.arange(24), 8))  # their own prompts go with them
    assert reference_log_probs(task, others) == pytest.approx(np.roll(samples.log_probs, 8), abs=1e-3)
    assert np.abs(np.roll(found, 8) - found).max() > 1  # control
