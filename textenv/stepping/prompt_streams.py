"""Streams of prompts: which prompt the n-th episode of each row has, computed some episodes ahead."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from textenv.state import Rows

AHEAD = 256  # hashes per batch, at least: hashing an array takes hardly longer than hashing a few numbers


class Seeded(Protocol):
    """An environment of Gymnasium, single or batched, as the owner of a generator."""

    _np_random: np.random.Generator | None
    _np_random_seed: int | None


class PromptStreams:
    """One stream of prompt indices per row; row i of many equals a single row with the same seed.

    The n-th prompt is a hash of (seed, n), so that no row needs a generator object of its own.

    Args:
        num: B, the number of rows.
        num_prompts: P; indices are in 0 .. P-1.
    """

    def __init__(self, num: int, num_prompts: int) -> None:
        self.num_prompts = num_prompts
        self.keys = np.zeros(num, dtype=np.uint64)  # the hashed seeds
        self.drawn = np.zeros(num, dtype=np.uint64)  # n of the first column of `ahead`
        self.columns = np.arange(max(16, AHEAD // num), dtype=np.uint64)
        self.first = np.arange(num) * len(self.columns)
        self._hash_ahead()

    def _hash_ahead(self) -> None:
        self.ahead = hash_prompts(self.keys[:, None], self.drawn[:, None] + self.columns, self.num_prompts)
        self.next = self.first.copy()  # the index of each row's next prompt in the flattened `ahead`
        self.enough_for = len(self.columns)  # the number of calls of `draw` for which `ahead` suffices in every row

    def seed(self, rows: NDArray[np.int64], seeds: NDArray[np.uint64]) -> None:
        """Starts the streams of these seeds in these rows."""
        self.drawn += (self.next - self.first).astype(np.uint64)
        self.keys[rows], self.drawn[rows] = _mix(seeds), 0
        self._hash_ahead()

    def snapshot(self) -> dict[str, object]:
        """A copy of the streams' positions, for `restore`."""
        return copy.deepcopy(vars(self))

    def restore(self, snapshot: dict[str, object]) -> None:
        """Sets the streams to what they were."""
        vars(self).update(snapshot)

    @contextmanager
    def restore_on_error(self, env: Seeded) -> Iterator[None]:
        """Restores the streams, and the generator of the environment that seeds them, if its block raises."""
        before, generator = self.snapshot(), (env._np_random, env._np_random_seed)
        try:
            yield
        except BaseException:
            self.restore(before)
            env._np_random, env._np_random_seed = generator
            raise

    def draw(self, rows: Rows) -> NDArray[np.int64]:
        """The next prompt of each of these rows (indices, or one)."""
        if self.enough_for == 0:
            used = self.next - self.first
            self.enough_for = len(self.columns) - int(used.max())
            if self.enough_for == 0:
                self.drawn += used.astype(np.uint64)
                self._hash_ahead()
        self.enough_for -= 1
        position = self.next.take(rows)
        self.next[rows] = position + 1
        return self.ahead.take(position)


def hash_prompts(keys: NDArray[np.uint64], n: NDArray[np.uint64], num_prompts: int) -> NDArray[np.int64]:
    """The n-th prompt of the streams with these keys.

    SplitMix64 (Steele, Lea, Flood 2014), applied to the seed (the result is the key) and then to key + n.
    """
    return (_mix(keys + n) % np.uint64(num_prompts)).astype(np.int64)


# SplitMix64's constants; module-level because making them takes as long as using them
STEP, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + STEP
    z = (z ^ (z >> SHIFTS[0])) * FIRST
    z = (z ^ (z >> SHIFTS[1])) * SECOND
    return z ^ (z >> SHIFTS[2])
