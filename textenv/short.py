"""Short answers by number: where there are few, what is known of each is looked up instead of worked out.

An answer's T ids are the digits of its number, to the base V.

>>> import numpy as np
>>> numbers(np.array([[0, 2], [1, 0]]), 3).tolist(), every_answer(2, 2).tolist()
([2, 3], [[0, 0], [0, 1], [1, 0], [1, 1]])
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 4096  # answers that are worth writing out


@cache
def _places(vocab_size: int, length: int) -> NDArray[np.int64]:
    return vocab_size ** np.arange(length, dtype=np.int64)[::-1]


def numbers(token_ids: NDArray[Any], vocab_size: int) -> NDArray[np.int64]:
    """The number [K] of each row of `token_ids` [K, T]."""
    found: NDArray[np.int64] = token_ids @ _places(vocab_size, token_ids.shape[1])
    return found


def every_answer(vocab_size: int, length: int) -> NDArray[np.int64]:
    """All V^T answers of so many tokens, [V^T, T], in the order of their numbers."""
    return np.indices((vocab_size,) * length).reshape(length, vocab_size**length).T
