"""Tokenizers: a batch of rows is decoded like each row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from textenv.data import WordTokenizer


@settings(max_examples=50, deadline=None)
@given(
    vocabulary=st.lists(
        st.text(st.characters(exclude_categories=["Z"])).filter(lambda word: word.split() == [word] != ["<eos>"]),
        min_size=1,
        unique=True,
    ),
    seed=st.integers(0, 99),
)
def test_rows_are_decoded_like_single_sequences(vocabulary: list[str], seed: int) -> None:
    """Words of any script and length, EOS tokens anywhere, empty columns at the end."""
    tokenizer = WordTokenizer(vocabulary)
    rows = np.random.default_rng(seed).integers(len(tokenizer), size=(4, 5))
    rows[0, 2:] = 0
    one_by_one = [tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    assert tokenizer.decode_rows(rows) == one_by_one
    assert tokenizer.decode_rows(rows[:, :0]) == [""] * 4


def test_a_tokenizer_that_overrides_decode_is_called() -> None:
    """`decode_rows` uses the overriding `decode`, not that of the base class."""

    class Glued(WordTokenizer):
        def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
            return super().decode(token_ids, skip_special_tokens=skip_special_tokens).replace(" ", "")

    ids = np.array([[1, 2], [2, 0]])
    assert Glued("a b").decode_rows(ids) == ["ab", "b"] and WordTokenizer("a b").decode_rows(ids) == ["a b", "b"]
