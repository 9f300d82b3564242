"""Finds the rows of a batch that extend the previous batch by one token."""

from __future__ import annotations

import numpy as np

from textenv.state import Array


class IncrementalInput:
    """Remembers the previous batch of sequences, to find the rows of the next one that have one more token.

    A reference keeps one state per row (a table's state, a KV cache), so it processes each token once. `log_probs`
    remains a pure function of its arguments: rows that do not extend the previous ones are processed from the start.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets the previous batch: all rows of the next one are new."""
        self.input_ids: Array = np.zeros((0, 0), dtype=np.int64)
        self.attention_mask: Array = np.zeros((0, 0), dtype=np.int8)

    def match(self, input_ids: Array, attention_mask: Array) -> tuple[Array, Array, Array]:
        """Compares a batch with the stored one and clears the latter.

        Returns:
            `(extended, unchanged, last)`, [B] each: whether row b is the stored row b plus one token, whether it is
            equal to it, and its last token.
        """
        rows, columns = np.arange(len(input_ids)), input_ids.shape[1]
        last_column = columns - 1 - np.argmax(attention_mask[:, ::-1], axis=1)
        if input_ids.shape == self.input_ids.shape:
            changed = attention_mask != self.attention_mask
            same = ((input_ids == self.input_ids) | (self.attention_mask == 0)).all(axis=1)
            count = changed.sum(axis=1)
            extended = same & (count == 1) & changed[rows, last_column]
            unchanged = same & (count == 0)
        else:
            extended = unchanged = np.zeros(len(input_ids), dtype=np.bool_)
        self.clear()  # until `store`: after an interrupted call every row is new
        return extended, unchanged, input_ids[rows, last_column]

    def store(self, input_ids: Array, attention_mask: Array) -> None:
        """Remembers a batch after it has been processed."""
        self.input_ids, self.attention_mask = input_ids.copy(), attention_mask.copy()
