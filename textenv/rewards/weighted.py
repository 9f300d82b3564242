"""The score of finished completions: the weighted sum of reward functions, and what is done about one that fails.

A reward function has TRL's signature:

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

It is called once per batch; `None` means "does not apply to this completion", and `columns` are the prompts' further
fields. `prompts` and `completions` are texts; where a prompt is a conversation they are its messages, and the
completion as a message of the assistant in a list of its own. A function whose signature takes them also gets
`trainer_state`, `log_extra` and `log_metric` (`textenv.rewards.training`). What async functions return is awaited, all
together, after the other functions were called.

A function fails if it raises an error, calls `sys.exit`, or does not return one finite number or None for each
completion. `on_reward_error` of `textenv.TextMDP` is what happens then:

    raise    `RewardError`.
    retry    The batch is scored again, in up to `reward_tries` attempts with `reward_wait` seconds between them, before
             the error. Functions that have scored all completions are not called again.
    skip     As retry; then each completion without a score is scored once more alone. `agents.collect` skips those that
             fail: their rows of `Rollout.mask` are False. `TextEnv`, `TextVectorEnv` and `textenv.exact` cannot leave a
             completion out: they raise the error after the last attempt.

Before an error about a whole batch is raised, its completions are scored alone, one by one up to the first that fails,
so that the error can name it: up to B more calls for a batch of B, also with "raise".

A reward function that depends only on token ids may also have `score_tokens(prompt, tokens, length)`, which computes
the same scores from arrays: `prompt` [K] the index of each prompt, `tokens` [K, T] the completions, 0 after their ends,
`length` [K]. It is called instead where all prompts are in the list, so that no list or string is made. It must be
pure, because its scores are reused: an environment of a small task scores every completion when it is made
(`textenv/stepping/tabulated.py`).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import check_count, is_number, is_scalar, shown
from textenv.rewards.calls import call_rewards, score_tokens_of
from textenv.rewards.errors import RewardError, describe, reward_error
from textenv.rewards.finished import FinishedCompletions
from textenv.rewards.functions import as_functions
from textenv.rewards.scores import FLOAT32_MAX, Scores, all_finite, as_number, is_finite, not_finite
from textenv.rewards.training import TrainingContext, trainer_arguments

RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
OnRewardError = Literal["raise", "retry", "skip"]

MAX_TRIES = 1000
MAX_WAIT = 3600.0  # seconds


class WeightedReward:
    """The score of a completion: the weighted sum of one or more reward functions.

        score(x, y) = sum_k w_k fn_k(x, y),    over the functions that do not return None

    Args:
        functions: one reward function or several. A sequence classifier, or the path or hub id of one, is a
            `RewardModel`.
        weights: w_k, by default 1 each.
        name: the name of the argument in error messages.
        context: what the functions learn of the training, and where they log metrics; by default one of their own.
        on_error, tries, wait: see `on_reward_error`, `reward_tries` and `reward_wait` of `textenv.TextMDP`.

    Raises:
        TypeError: something is no function.
        ValueError: the weights are not one finite number per function; another argument is out of range.
    """

    def __init__(
        self,
        functions: object,
        weights: Sequence[float] | None = None,
        name: str = "reward",
        *,
        context: TrainingContext | None = None,
        on_error: OnRewardError = "raise",
        tries: int = 3,
        wait: float = 1.0,
    ) -> None:
        self.functions = as_functions(functions, name)
        self.weights = _read_weights(weights, len(self.functions))
        self.context = context or TrainingContext()
        self.takes = tuple(map(trainer_arguments, self.functions))
        if on_error not in ("raise", "retry", "skip"):
            raise ValueError(f"on_reward_error must be 'raise', 'retry' or 'skip', got {on_error!r}.")
        tries = check_count("reward_tries", tries, high=MAX_TRIES)
        if not is_number(wait) or not 0 <= wait <= MAX_WAIT:
            raise ValueError(f"reward_wait must be a number of seconds from 0 to {MAX_WAIT:g}, got {wait!r}.")
        self.name, self.on_error, self.tries, self.wait = name, on_error, tries, float(wait)
        self.last_skip: RewardError | None = None  # the last error for which a completion was skipped

    @property
    def is_pure(self) -> bool:
        """Whether each function has `score_tokens`: the same completion always has the same score."""
        return all(score_tokens_of(function) is not None for function in self.functions)

    def score(self, finished: FinishedCompletions, may_skip: bool = False) -> NDArray[np.float64]:
        """Scores [B] of B finished completions.

        Args:
            finished: the completions.
            may_skip: with `on_error="skip"`, return nan for completions that cannot be scored, instead of raising.

        Raises:
            RewardError: a function failed, or did not return one finite number or None for each completion; or all of
                them returned None for a completion; or the weighted sum is not finite in float32.
        """
        done: dict[int, Scores] = {}
        total, error = self._attempt(finished, done)
        for _ in range(0 if self.on_error == "raise" else self.tries - 1):
            if error is None:
                break
            time.sleep(self.wait)
            total, error = self._attempt(finished, done)
        if error is None:
            return total
        if may_skip and self.on_error == "skip":
            return self._score_alone(finished, done, total, error)
        error = self._locate(finished, done, error)
        if self.on_error == "skip":
            error.add_note(
                "on_reward_error='skip' leaves completions out of rollouts alone: steps of an environment, and what is "
                "computed exactly over all completions, need every score."
            )
        raise error

    def _attempt(
        self, finished: FinishedCompletions, done: dict[int, Scores]
    ) -> tuple[NDArray[np.float64], RewardError | None]:
        """Calls the functions that are not `done`; returns the scores, nan where there is none, and the first error.

        Adds to `done` the scores of each function that has one for every completion.
        """
        total, error = np.zeros(len(finished)), None
        none: list[NDArray[np.bool_]] = []  # of the functions that returned a None
        both = zip(self.functions, self.takes, strict=True)
        called = {k: (function, takes) for k, (function, takes) in enumerate(both) if k not in done}
        new, failed = call_rewards(called, finished, self.context, self.name)
        for k, (weight, function) in enumerate(zip(self.weights, self.functions, strict=True)):
            scores = done[k] if k in done else new.get(k)
            if scores is None:
                continue
            if all_finite(scores.values):
                done[k] = scores
                total += weight * scores.values
            else:
                finite = is_finite(scores.values)
                bad = int(np.argmin(finite))
                error = error or reward_error(function, not_finite(scores.values[bad]), finished, bad, self.name)
                total += weight * np.where(finite, scores.values, np.nan)
            if scores.none is not None:
                none.append(scores.none)
        if failed is not None:
            return np.full(len(finished), np.nan), failed
        unscored = np.logical_and.reduce(none) if len(none) == len(self.functions) else None
        if error is None and (error := self._check_total(finished, total, unscored)) is not None:
            done.clear()  # each function returned something valid: all are called again
        if error is not None:
            total[~is_finite(total) | (False if unscored is None else unscored)] = np.nan
        return total, error

    def _check_total(
        self, finished: FinishedCompletions, total: NDArray[np.float64], unscored: NDArray[np.bool_] | None
    ) -> RewardError | None:
        """The error of the first completion that no function scores, or whose weighted sum is too large."""
        if unscored is not None and unscored.any():
            return RewardError(
                f"Every reward function returned None for {describe(finished, int(np.argmax(unscored)))}; at least one "
                "must score each completion (0.0 is a score)."
            )
        if not all_finite(total):
            bad = int(np.argmin(is_finite(total)))
            return RewardError(
                f"The weighted sum of the scores must be finite in float32, got {total[bad]} for "
                f"{describe(finished, bad)}; lower reward_weights."
            )
        return None

    def _score_alone(
        self, finished: FinishedCompletions, done: dict[int, Scores], total: NDArray[np.float64], error: RewardError
    ) -> NDArray[np.float64]:
        """Calls the functions once more for each completion without a score, alone; nan where that fails too."""
        rows: list[int] = np.flatnonzero(np.isnan(total)).tolist() if len(finished) > 1 else []
        for row in rows:
            alone = {k: scores.select(row) for k, scores in done.items()}
            one = finished.select(row)
            total[row : row + 1], failed = self._attempt(one, alone)
            error = failed or error
            for name, values in one.extra.items():
                finished.extra.setdefault(name, [None] * len(finished))[row] = values[0]
        if skipped := int(np.isnan(total).sum()):
            if self.last_skip is None:
                warnings.warn(
                    f"{skipped} of {len(finished)} completions are skipped, and so will be others that fail, without "
                    f"another warning: {error}",
                    stacklevel=2,
                )
            self.last_skip = error
        return total

    def _locate(self, finished: FinishedCompletions, done: dict[int, Scores], error: RewardError) -> RewardError:
        """The error with the first completion that fails alone, where the error is about a whole batch."""
        if not error.whole_batch:
            return error
        found = "None of the completions fails alone."
        for row in range(len(finished)):
            alone = {k: scores.select(row) for k, scores in done.items()}
            if (failed := self._attempt(finished.select(row), alone)[1]) is not None:
                if failed.__cause__ is not None:
                    return failed
                found = f"The first that fails alone is {describe(finished, row)}."
                break
        located = RewardError(f"{error} {found}")
        located.__cause__ = error.__cause__
        return located


def _read_weights(weights: Any, count: int) -> tuple[float, ...]:
    """One finite number per function; 1 each where there are none given."""
    if weights is None:
        return (1.0,) * count
    read = None if is_scalar(weights) else [as_number(weight) for weight in weights]
    if read is None or len(read) != count or not all(w is not None and np.abs(w) <= FLOAT32_MAX for w in read):
        raise ValueError(f"reward_weights must be one finite number per function ({count}), got {shown(weights)}.")
    return tuple(w for w in read if w is not None)


def scores_or_nan(
    reward: WeightedReward, gold_reward: WeightedReward | None, finished: FinishedCompletions
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Score and gold score of finished completions, [K], both nan for one that is skipped (see `on_reward_error`).

    A completion is skipped if one of the two fails, so that both are measured on the same completions.
    """
    scores = reward.score(finished, may_skip=True)
    if gold_reward is None:
        return scores, None
    gold_scores = gold_reward.score(finished, may_skip=True)
    skipped = np.isnan(scores) | np.isnan(gold_scores)
    scores[skipped] = gold_scores[skipped] = np.nan
    return scores, gold_scores
