"""Streams of prompts: which prompt each slot's n-th text has, drawn some texts ahead."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

AHEAD = 256  # hashes at a time, at least: as arrays they take hardly longer than a few


class PromptStreams:
    """One stream of prompt indices for each of B slots; slot i of many equals a single slot with the same seed.

    The n-th prompt is a hash of (seed, n), so that no slot needs a generator object of its own.

    Args:
        num: B.
        num_prompts: P; indices are in 0 .. P-1.
    """

    def __init__(self, num: int, num_prompts: int) -> None:
        self.num_prompts = num_prompts
        self.keys = np.zeros(num, dtype=np.uint64)  # the seeds, mixed
        self.drawn = np.zeros(num, dtype=np.uint64)  # n of the first column of `ahead`
        self.columns = np.arange(max(16, AHEAD // num), dtype=np.uint64)
        self.first = np.arange(num) * len(self.columns)
        self._look_ahead()

    def _look_ahead(self) -> None:
        self.ahead = hashed(self.keys[:, None], self.drawn[:, None] + self.columns, self.num_prompts)
        self.next = self.first.copy()  # where in `ahead`, seen as one line, the next prompt of each slot is
        self.enough_for = len(self.columns)  # as many calls of `draw` will find a prompt in every slot

    def seed(self, rows: NDArray[np.int64], seeds: NDArray[np.uint64]) -> None:
        """Let these slots begin the streams that belong to these seeds."""
        self.drawn += (self.next - self.first).astype(np.uint64)
        self.keys[rows], self.drawn[rows] = _mix(seeds), 0
        self._look_ahead()

    @contextmanager
    def restore_on_error(self) -> Iterator[None]:
        """What raises inside leaves the streams as they were."""
        before = copy.deepcopy(vars(self))
        try:
            yield
        except Exception:
            vars(self).update(before)
            raise

    def draw(self, rows: Any) -> Any:
        """The next prompt of each of these slots (indices, or one)."""
        if self.enough_for == 0:
            used = self.next - self.first
            self.enough_for = len(self.columns) - int(used.max())
            if self.enough_for == 0:
                self.drawn += used.astype(np.uint64)
                self._look_ahead()
        self.enough_for -= 1
        here = self.next.take(rows)
        self.next[rows] = here + 1
        return self.ahead.take(here)


def hashed(keys: NDArray[np.uint64], n: NDArray[np.uint64], num_prompts: int) -> NDArray[np.int64]:
    """The n-th prompt of the streams with these keys.

    SplitMix64 (Steele, Lea, Flood 2014), applied to the seed (which is the key) and then to the key + n.
    """
    return (_mix(keys + n) % np.uint64(num_prompts)).astype(np.int64)


# SplitMix64's numbers; made once, as making them takes as long as using them
STEP, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + STEP
    z = (z ^ (z >> SHIFTS[0])) * FIRST
    z = (z ^ (z >> SHIFTS[1])) * SECOND
    return z ^ (z >> SHIFTS[2])
