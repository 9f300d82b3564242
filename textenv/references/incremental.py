"""Which texts of a batch are those of the last batch, one token on."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class IncrementalInput:
    """Remembers the last batch of texts, to see which rows of the next one are the same texts plus one token.

    The references keep a state a row (a table's state, a KV cache) and so read each token once, while
    `log_probs` stays a pure function of its arguments: rows that do not follow are read from the start.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Follow nothing: the next texts are all new."""
        self.input_ids: NDArray[Any] = np.zeros((0, 0), dtype=np.int64)
        self.attention_mask: NDArray[Any] = np.zeros((0, 0), dtype=np.int8)

    def match(self, input_ids: NDArray[Any], attention_mask: NDArray[Any]) -> tuple[Array, Array, Array]:
        """`(follows, unchanged, last)`, [B] each: whether row b is the last call's row b plus one token, or that very
        row, and its last token."""
        rows, columns = np.arange(len(input_ids)), input_ids.shape[1]
        last_column = columns - 1 - np.argmax(attention_mask[:, ::-1], axis=1)
        if input_ids.shape == self.input_ids.shape:
            grown = attention_mask != self.attention_mask
            same = ((input_ids == self.input_ids) | (self.attention_mask == 0)).all(axis=1)
            count = grown.sum(axis=1)
            follows = same & (count == 1) & grown[rows, last_column]
            unchanged = same & (count == 0)
        else:
            follows = unchanged = np.zeros(len(input_ids), dtype=np.bool_)
        self.clear()  # until `remember`: a call that is interrupted leaves nothing to follow
        return follows, unchanged, input_ids[rows, last_column]

    def store(self, input_ids: NDArray[Any], attention_mask: NDArray[Any]) -> None:
        """These texts have been read."""
        self.input_ids, self.attention_mask = input_ids.copy(), attention_mask.copy()
