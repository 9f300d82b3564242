"""Table references: the given probabilities, and incremental calls that equal a loop over the tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.sequences import changes, changing_batches, observed, padded
from tests.helpers.tasks import random_reference
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.references.incremental import IncrementalInput

COMPLETIONS = {"a b": {"b": 0.5, "b a": 0.2, "": 0.3}, "a b a": {"": 0.25, "a a a": 0.75}, "b": {"b": 3.0, "b b": 1.0}}


@pytest.mark.parametrize("prompt", list(COMPLETIONS))
def test_from_completions_has_the_given_probabilities(prompt: str) -> None:
    """The product of next-token probabilities, end included, is each completion's weight; no other is possible."""
    tokenizer = WordTokenizer("a b")
    reference = TableReference.from_completions(tokenizer, COMPLETIONS)
    total = sum(COMPLETIONS[prompt].values())

    def next_tokens(sequence: list[int]) -> dict[int, float]:
        probs = np.exp(reference.log_probs(*padded([sequence])))[0]
        assert probs.sum() == pytest.approx(1.0)
        return {token: prob for token, prob in enumerate(probs) if prob}

    def finish(sequence: list[int], completion: list[int], prob: float) -> dict[str, float]:
        finished: dict[str, float] = {}
        for token, share in next_tokens(sequence).items():
            if token == tokenizer.eos_token_id:
                finished[tokenizer.decode(completion)] = prob * share
            else:
                finished |= finish([*sequence, token], [*completion, token], prob * share)
        return finished

    expected = {completion: weight / total for completion, weight in COMPLETIONS[prompt].items()}
    assert finish(tokenizer.encode(prompt), [], 1.0) == pytest.approx(expected)
    assert not reference.full_support


def test_special_tokens_are_added_to_prompts_alone() -> None:
    """A tokenizer that begins a text with such a token does not begin a completion with it."""

    class Begins(WordTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1] * add_special_tokens + super().encode(text)

    tokenizer = Begins("begin a b")
    reference = TableReference.from_completions(tokenizer, {"a": {"b": 1.0}})
    assert tokenizer.encode("a") == [1, 2]
    for sequence, following in (([1, 2], 3), ([1, 2, 3], 0)):
        assert np.exp(reference.log_probs(*padded([sequence])))[0].argmax() == following


def test_a_prompt_that_begins_another_keeps_its_own_completions() -> None:
    """ "a" and "a a" share their beginning: the completions of the second add no probability to those of the first."""
    reference = TableReference.from_completions(WordTokenizer("a b"), {"a": {"b": 1.0}, "a a": {"a": 1.0}})
    assert np.exp(reference.log_probs(*padded([[1]]))).tolist() == [[0, 0, 1]]
    assert np.exp(reference.log_probs(*padded([[1, 1]]))).tolist() == [[0, 1, 0]]


def test_ambiguous_completions_are_refused() -> None:
    """The prompt "a" with the completion "b a" equals the prompt "a b" with "a": both weights cannot hold."""
    with pytest.raises(ValueError, match="a b"):
        TableReference.from_completions(
            WordTokenizer("a b"), {"a": {"b a": 0.1, "a": 0.9}, "a b": {"a": 0.5, "b": 0.5}}
        )


def test_a_sequence_that_is_not_in_the_tree_has_no_continuation() -> None:
    """Off the tree every token has probability 0, also after further tokens."""
    reference = TableReference.from_completions(WordTokenizer("a b"), COMPLETIONS)
    assert np.isneginf(reference.log_probs(*padded([[2, 1], [2, 1, 2]]))).all()


def test_unigram_and_bigram() -> None:
    """One row is the same everywhere; a square table depends on the last token (before any token, it is row 0)."""
    unigram = np.log([0.5, 0.25, 0.25])
    ids, mask = padded([[1], [2, 1], [1, 2, 2]])
    assert (TableReference(unigram).log_probs(ids, mask) == unigram).all()
    rng = np.random.default_rng(0)
    bigram = np.log(rng.dirichlet(np.ones(3), size=3))
    assert (TableReference(bigram).log_probs(ids, mask) == bigram[[1, 1, 2]]).all()
    assert TableReference(unigram).full_support and TableReference(bigram).full_support
    assert TableReference(unigram).vocab_size == TableReference(bigram).vocab_size == 3


def table_row(reference: TableReference, sequence: list[int]) -> np.ndarray:
    """The log-probabilities after a sequence, by a loop over its tokens."""
    state = 0
    for token in sequence:
        state = reference.next_state[state, token]
    return reference.table[state]


@settings(max_examples=60, deadline=None)
@given(calls=changes, seed=st.integers(0, 999), sparse=st.booleans())
def test_an_incremental_table_equals_one_from_the_start(calls: list[Any], seed: int, sparse: bool) -> None:
    """Whatever the previous calls, log_probs is a pure function of its arguments: the table from the first token on."""
    reference = random_reference(4, seed, sparse)
    for batch in changing_batches(calls, seed, 4):
        log_probs = reference.log_probs(*observed(batch, 2, 16))
        assert log_probs.tolist() == [table_row(reference, sequence).tolist() for sequence in batch]


def test_incremental_input_without_a_comparison_would_be_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: treating every row as the previous one plus a token gives other log-probabilities."""

    def without_comparison(self: Any, ids: Any, mask: Any) -> Any:
        last = ids[np.arange(len(ids)), ids.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)]
        known, self.input_ids = len(self.input_ids) == len(ids), ids
        return np.full(len(ids), known), np.zeros(len(ids), dtype=np.bool_), last

    monkeypatch.setattr(IncrementalInput, "match", without_comparison)
    reference = random_reference(4, 0, sparse=False)
    for change in ("stay", "restart", "jump", "swap last"):
        wrong = []
        for seed in range(5):
            batches = changing_batches([("grow", "grow", change)] * 3, seed, 4)
            log_probs = [reference.log_probs(*observed(batch, 2, 16)) for batch in batches]
            wrong.append(not np.allclose(log_probs[-1][2], table_row(reference, batches[-1][2])))
        assert any(wrong), change
