"""States of the MDP: prompts and the completions so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # of any dtype
Rows = int | NDArray[np.int64]  # one row, or the indices of several
Selection = slice | NDArray[np.int64] | NDArray[np.bool_]  # some of the rows


@dataclass
class TextState:
    """B states s_t of the MDP, one per row.

    Attributes:
        prompt: int64 [B], the index of each prompt, or -1 for one that is not in the list.
        prompt_text: object [B], the prompts as text.
        input_ids: int64 [B, L], the prompt in columns 0 .. W-1 (left-padded), a_t in column W + t.
        attention_mask: int8 [B, L], 1 on tokens, 0 on padding and empty columns.
        time: int64 [B], t, the number of completion tokens.
    """

    prompt: NDArray[np.int64]
    prompt_text: NDArray[np.object_]
    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int8]
    time: NDArray[np.int64]

    @classmethod
    def empty(cls, batch: int, length: int) -> TextState:
        """B rows of L empty columns, without a prompt."""
        return cls(
            prompt=np.zeros(batch, dtype=np.int64),
            prompt_text=np.full(batch, None, dtype=object),
            input_ids=np.zeros((batch, length), dtype=np.int64),
            attention_mask=np.zeros((batch, length), dtype=np.int8),
            time=np.zeros(batch, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, rows: Selection) -> TextState:
        """Some of the rows: `rows` is a slice or an array of indices."""
        return TextState(**{name: values[rows] for name, values in vars(self).items()})

    def copy(self) -> TextState:
        """A copy that shares no array."""
        return TextState(**{name: values.copy() for name, values in vars(self).items()})

    def completion_ids(self, row: int, prompt_width: int) -> NDArray[np.int64]:
        """The tokens of the completion so far in one row, [t]; `prompt_width` is W."""
        return self.input_ids[row, prompt_width : prompt_width + int(self.time[row])]

    def append(self, rows: Rows, tokens: Rows, prompt_width: int) -> None:
        """Puts a_t of the rows `rows` (indices [K], or one) in their column W + t and advances t, in place.

        Args:
            rows: the rows whose episodes are in progress, each once.
            tokens: a_t of each, [K].
            prompt_width: W.
        """
        time = self.time[rows]
        cell = rows * self.input_ids.shape[1] + prompt_width + time  # `put` by cell is faster than by row and column
        self.input_ids.put(cell, tokens)
        self.attention_mask.put(cell, 1)
        self.time[rows] = time + 1

    def without_completion(self, prompt_width: int) -> TextState:
        """A copy with the same prompts, whose completions are empty: s_0 of each row."""
        state = self.copy()
        state.input_ids[:, prompt_width:] = 0
        state.attention_mask[:, prompt_width:] = 0
        state.time[:] = 0
        return state

    def put(self, rows: Rows, other: TextState) -> None:
        """Sets the rows `rows` to those of `other`, in place; one row of `other` is broadcast."""
        indices = np.atleast_1d(rows)
        for name, values in vars(self).items():
            values[indices] = getattr(other, name)
