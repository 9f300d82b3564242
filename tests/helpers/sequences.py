"""Batches of token sequences as observations."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st


def padded(
    sequences: list[list[int]], left: int = 0, right: int = 0, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as observations: left-padded to one length, with further padding on both sides."""
    width = max(map(len, sequences)) + left
    ids = np.array([[padding] * (width - len(row)) + row + [padding] * right for row in sequences])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) + [0] * right for row in sequences], dtype=np.int8)
    return ids, mask


def observed(batch: list[list[int]], width: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in an environment's columns: prompts are left-padded to `width`, the other tokens follow."""
    ids, mask = np.zeros((len(batch), length), dtype=np.int64), np.zeros((len(batch), length), dtype=np.int8)
    for row, tokens in enumerate(batch):
        start = width - min(width, 1 + row % 2, len(tokens))
        ids[row, start : start + len(tokens)] = tokens
        mask[row, start : start + len(tokens)] = 1
    return ids, mask


changes = st.lists(  # for each call, the change of each of three rows
    st.tuples(*[st.sampled_from(["grow", "stay", "restart", "jump", "swap last"]) for _ in range(3)]), max_size=8
)


def changing_batches(calls: list[tuple[str, ...]], seed: int, vocab: int) -> list[list[list[int]]]:
    """Consecutive batches of three rows, which grow by a token, stay, restart, or become any other sequence."""
    rng = np.random.default_rng(seed)

    def token() -> int:
        return int(rng.integers(vocab))

    rows = [[token()], [token(), token()], [token()]]
    batches = [[list(row) for row in rows]]
    for call in calls:
        for i, change in enumerate(call):
            if change == "grow":
                rows[i] = [*rows[i], token()]
            elif change == "restart":
                rows[i] = [token() for _ in range(1 + i)]
            elif change == "jump":
                rows[i] = [token() for _ in range(rng.integers(1, 6))]
            elif change == "swap last":  # as long as before, another last token
                rows[i] = [*rows[i][:-1], (rows[i][-1] + 1) % vocab]
        batches.append([list(row) for row in rows])
    return batches
