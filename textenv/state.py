"""States of the MDP: prompts and the completions so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class TextState:
    """B texts in progress: the states s_t of the process.

    Attributes:
        prompt: int64 [B], which prompt, or -1 for one that is not in the list.
        prompt_text: object [B], the prompts as text.
        input_ids: int64 [B, L], the prompt in columns 0 .. W-1 (padded on the left), a_t in column W + t.
        attention_mask: int8 [B, L], 1 on real tokens.
        time: int64 [B], t, the number of tokens written.
    """

    prompt: Array
    prompt_text: Array
    input_ids: Array
    attention_mask: Array
    time: Array

    def __len__(self) -> int:
        return len(self.prompt)

    def __getitem__(self, rows: Any) -> TextState:
        """Some of the texts: `rows` is a slice or an array of indices."""
        return TextState(**{name: values[rows] for name, values in vars(self).items()})

    def put(self, rows: Any, other: TextState) -> None:
        """Rows `rows` become those of `other` (one row of it serves for all), in place."""
        rows = np.atleast_1d(rows)
        for name, values in vars(self).items():
            values[rows] = getattr(other, name)
