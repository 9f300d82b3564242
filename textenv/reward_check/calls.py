"""One reward function, called as the environments call it, with what is needed to see what it does."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import random
import sys
import time
from collections.abc import Awaitable, Sequence

import numpy as np
from numpy.typing import NDArray

from textenv.reward_check.attempts import Attempts
from textenv.reward_check.printed import Printed
from textenv.rewards import FinishedCompletions, RewardFunction, WeightedReward, call_reward, score_tokens_of

Array = NDArray[np.float64]
Scored = Sequence[float | None] | Awaitable[Sequence[float | None]]


class WatchedFunction:
    """A reward function under examination.

    What it prints is kept away from the report.

    Args:
        function: the reward function.
        skips, wait: see `Attempts`.

    Attributes:
        name: its name.
        attempts: its calls, and those that failed.
        printed: what it has printed.
        calls: completions and seconds of each call so far, without those in which its arguments are copied.
        is_async: whether what it returned was awaited.
        changed: the argument that it changed, before and after; "" if none.
        not_copied: the arguments of which a change inside of a value is not seen, and why; "" if none.
        drew_from: the libraries whose global random generator it drew from; "" if none.
    """

    def __init__(self, function: RewardFunction, *, skips: bool = False, wait: float = 0.0) -> None:
        self.function = function
        self.attempts, self.printed = Attempts(skips=skips, wait=wait), Printed()
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self.has_score_tokens = score_tokens_of(function) is not None
        self.calls: list[tuple[int, float]] = []
        self.is_async = False
        self.changed, self.not_copied, self.drew_from = "", "", ""

    def score_texts(self, finished: FinishedCompletions) -> Array:
        """Scores [K] by the signature with texts, nan where it returned None; see `Attempts.score`.

        Raises:
            RewardError: it failed, or a score is not finite.
        """
        return self.attempts.score(self._score_texts, finished)

    def score(self, finished: FinishedCompletions) -> Array:
        """Scores [K] as a training has them: by `score_tokens` where the function has that; else `score_texts`."""
        return self.attempts.score(self._score, finished)

    def _score(self, finished: FinishedCompletions) -> Array:
        with contextlib.redirect_stdout(self.printed):
            return call_reward(self.function, finished)

    def _score_texts(self, finished: FinishedCompletions) -> Array:
        recorded = _Recorded(finished)
        before, started = _generators(), time.perf_counter()
        with contextlib.redirect_stdout(self.printed):
            scores = call_reward(self._by_text(), recorded)
        self.calls.append((len(finished), time.perf_counter() - started - recorded.seconds))
        self.not_copied = recorded.not_copied
        self.changed = self.changed or recorded.change()
        self.drew_from = self.drew_from or ", ".join(n for n, state in _generators().items() if state != before[n])
        return scores

    def _by_text(self) -> RewardFunction:
        """The function without its `score_tokens`."""

        @functools.wraps(self.function)
        def call(**arguments: object) -> Scored:
            returned = self.function(**arguments)
            self.is_async = self.is_async or inspect.isawaitable(returned)
            return returned

        return call


class WatchedReward:
    """The weighted sum of the functions of a reward, each under examination.

    Args:
        reward: the functions, their weights, and what a training does where they fail.

    Attributes:
        functions: the functions; of equal names each has a number.
    """

    def __init__(self, reward: WeightedReward) -> None:
        self.weights, skips = reward.weights, reward.on_error == "skip"
        wait = 0.0 if reward.on_error == "raise" else reward.wait
        self.functions = [WatchedFunction(function, skips=skips, wait=wait) for function in reward.functions]
        names = [function.name for function in self.functions]
        for number, function in enumerate(self.functions, start=1):
            if names.count(function.name) > 1:
                function.name += f", reward {number}"

    @property
    def fails_at_random(self) -> bool:
        """Whether a function has failed at random."""
        return any(function.attempts.at_random for function in self.functions)

    def score(self, finished: FinishedCompletions) -> Array:
        """The weighted sum, [K]; nan where all functions returned None, or one fails and the completion is skipped.

        Raises:
            RewardError: a function failed, or a score is not finite.
        """
        return self.sum([function.score(finished) for function in self.functions], finished)

    def sum(self, parts: Sequence[Array], finished: FinishedCompletions) -> Array:
        """The weighted sum of the scores of the functions, see `score`."""
        total = np.stack([weight * part for weight, part in zip(self.weights, parts, strict=True)])
        missing = np.isnan(total).all(axis=0)
        for function in self.functions:
            missing |= function.attempts.is_skipped(finished)
        return np.where(missing, np.nan, np.nansum(total, axis=0))


class _Recorded(FinishedCompletions):
    """Completions that remember the arguments that a function was given."""

    def __init__(self, finished: FinishedCompletions) -> None:
        arrays = (finished.prompt, finished.prompt_text, finished.tokens, finished.length)
        super().__init__(finished.tokenizer, finished.listed, *arrays)
        self.given: dict[str, list[object]] = {}
        self.before: dict[str, str] = {}
        self.not_copied, self.seconds = "", 0.0

    def arguments(self) -> dict[str, list[object]]:
        """The arguments; columns are copied, so that a change of one is seen and stays here."""
        started = time.perf_counter()
        self.given = {name: self._copy(name, values) for name, values in super().arguments().items()}
        self.before = {name: repr(value) for name, value in self.given.items()}
        self.seconds = time.perf_counter() - started
        return self.given

    def _copy(self, name: str, values: list[object]) -> list[object]:
        """A deep copy, or a shallow one of what has none: a connection, a lock."""
        try:
            return copy.deepcopy(values)
        except Exception as error:  # whatever a user's object raises where it is copied
            self.not_copied = f"{name}: {error}"
            return list(values)

    def change(self) -> str:
        """The first argument that is not what it was, before and after."""
        for name, value in self.given.items():
            if (after := repr(value)) != self.before[name]:
                at = next((i for i, (a, b) in enumerate(zip(after, self.before[name], strict=False)) if a != b), 0)
                first = max(0, at - 20)
                return f"{name}: ...{self.before[name][first : at + 40]}... became ...{after[first : at + 40]}..."
        return ""


def _generators() -> dict[str, str]:
    """The states of the global random generators, by library."""
    states = {"random": repr(random.getstate()), "numpy.random": repr(np.random.get_state(legacy=False))}  # noqa: NPY002 (a user's, to see whether it moves)
    if (torch := sys.modules.get("torch")) is not None:
        states["torch"] = str(torch.get_rng_state().numpy().tobytes().hex())
    return states
