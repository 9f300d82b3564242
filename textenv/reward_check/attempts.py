"""Calls of a reward function that may fail: again, and each completion alone, as `on_reward_error` has it.

A failure is at random if the same completions are scored when they are tried again. A completion that fails in every
attempt is one that the function cannot score.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from textenv.rewards import FinishedCompletions, RewardError, WrongSignature

BATCH, ALONE = 3, 6  # attempts
PATIENT = (
    20  # attempts alone of a function that fails at random: one that fails half of the time is scored nevertheless
)

Array = NDArray[np.float64]
Scoring = Callable[[FinishedCompletions], Array]


class Attempts:
    """The attempts that one function was called in.

    Args:
        skips: whether completions that cannot be scored are skipped in a training (`on_reward_error="skip"`).
        wait: seconds between attempts of a batch (`reward_wait`).

    Attributes:
        count: attempts so far, with several completions and with one.
        failed: those of them that failed at random.
        at_random: the error of the first failure at random; "" if there was none.
        skipped: the error of each completion that cannot be scored, by its prompt and tokens.
    """

    def __init__(self, *, skips: bool = False, wait: float = 0.0) -> None:
        self.skips, self.wait = skips, wait
        self.count, self.failed = [0, 0], [0, 0]
        self.at_random = ""
        self.skipped: dict[tuple[int, bytes], str] = {}

    def score(self, scoring: Scoring, finished: FinishedCompletions) -> Array:
        """Scores [K]; nan where there is none, and for completions that are skipped.

        Raises:
            RewardError: a completion cannot be scored, and is not skipped; or the batch cannot, but each alone can.
        """
        left = np.flatnonzero(~self.is_skipped(finished))
        scores = np.full(len(finished), np.nan)
        if len(left):
            scores[left] = self._of_batch(scoring, finished.select(left) if len(left) < len(finished) else finished)
        return scores

    def is_skipped(self, finished: FinishedCompletions) -> NDArray[np.bool_]:
        """Which completions are known to be ones that cannot be scored, bool [K]."""
        if not self.skipped:
            return np.zeros(len(finished), dtype=np.bool_)
        return np.array([self._key(finished, row) in self.skipped for row in range(len(finished))], dtype=np.bool_)

    def _of_batch(self, scoring: Scoring, finished: FinishedCompletions) -> Array:
        if len(finished) == 1:
            return self._of_one(scoring, finished)
        scores, error = self._try(scoring, finished, BATCH)
        if error is None:
            return scores
        known = len(self.skipped)
        scores = np.concatenate([self._of_one(scoring, finished.select(row)) for row in range(len(finished))])
        if len(self.skipped) == known:  # no completion was to blame
            if not self.at_random:
                raise RewardError(f"{error} None of the completions fails alone.") from error
            self.failed[0] += BATCH
        return scores

    def _of_one(self, scoring: Scoring, finished: FinishedCompletions) -> Array:
        scores, error = self._try(scoring, finished, PATIENT if self.at_random else ALONE)
        if error is None:
            return scores
        if not self.skips:
            raise error
        self.skipped[self._key(finished, 0)] = str(error)
        return np.array([np.nan])

    def _try(self, scoring: Scoring, finished: FinishedCompletions, attempts: int) -> tuple[Array, RewardError | None]:
        """The scores, or the error of the last attempt."""
        single, errors = int(len(finished) == 1), list[RewardError]()
        while len(errors) < attempts:
            if errors and not single:
                time.sleep(self.wait)
            self.count[single] += 1
            try:
                scores = scoring(finished)
            except WrongSignature:
                raise
            except RewardError as error:
                errors.append(error)
                continue
            if errors:
                self.failed[single] += len(errors)
                self.at_random = self.at_random or str(errors[0])
            return scores, None
        return np.zeros(0), errors[-1]

    @staticmethod
    def _key(finished: FinishedCompletions, row: int) -> tuple[int, bytes]:
        return int(finished.prompt[row]), finished.tokens[row, : finished.length[row]].tobytes()
