"""Scores of finished completions: reward functions and their weighted sum.

A reward function has TRL's signature:

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

It is called once per batch. `None` means "does not apply to this completion". `columns` are the prompts' further
fields.

A reward function that depends only on token ids may also have `score_tokens(prompt, tokens, length)`, which computes
the same scores from arrays: `prompt` [K] the index of each prompt, `tokens` [K, T] the completions, 0 after their ends,
`length` [K]. It is called instead where all prompts are in the list, so that no list or string is made. It must be
pure, because its scores are reused: a `TextVectorEnv` of a small task scores every completion when it is made
(`textenv.stepping.TabulatedBatch`), and a `TextEnv` scores each completion once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.rewards.finished import FinishedCompletions

RewardFunction = Callable[..., Sequence[float | None]]


@dataclass
class CompletionLists:
    """Finished completions as the lists that a reward function takes."""

    prompts: list[str]
    completions: list[str]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.prompts)


class WeightedReward:
    """The score of a completion: the weighted sum of one or more reward functions.

        score(x, y) = sum_k w_k fn_k(x, y),    over the functions that do not return None

    Args:
        functions: one reward function or several.
        weights: w_k, by default 1 each.
        name: the name of the argument in error messages.

    Raises:
        TypeError: something is not callable.
        ValueError: the weights are not one finite number per function.
    """

    def __init__(
        self,
        functions: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        name: str = "reward",
    ) -> None:
        self.functions = (functions,) if callable(functions) else tuple(functions)
        if not self.functions or not all(map(callable, self.functions)):
            raise TypeError(
                f"{name} must be a function (prompts, completions, completion_ids, **columns) -> list[float | None], "
                f"or a list of them, got {functions!r}."
            )
        self.weights = tuple([1.0] * len(self.functions) if weights is None else map(float, weights))
        if len(self.weights) != len(self.functions) or not np.isfinite(self.weights).all():
            raise ValueError(
                f"reward_weights must be one finite number per function ({len(self.functions)}), "
                f"got {list(self.weights)}."
            )

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], columns: dict[str, list[Any]]
    ) -> NDArray[np.float64]:
        """Scores completions that are given as lists, as `score` does."""
        return self.score(CompletionLists(prompts, completions, completion_ids, columns))

    @property
    def is_pure(self) -> bool:
        """Whether each function has `score_tokens`: the same completion always has the same score."""
        return all(_score_tokens(function) is not None for function in self.functions)

    def score(self, finished: FinishedCompletions | CompletionLists) -> NDArray[np.float64]:
        """Scores [B] of B finished completions.

        Raises:
            ValueError: a function returns the wrong number of scores, a NaN or an infinity, or all of them return
                None for one completion.
        """
        total, unscored = np.zeros(len(finished)), None
        for weight, function in zip(self.weights, self.functions, strict=True):
            scores, none = _call(function, finished)
            total += weight * scores
            unscored = none if unscored is None else unscored & none
        if unscored:
            bad = min(unscored)
            raise ValueError(
                f"Every reward function returned None for {finished.completions[bad]!r} after "
                f"{finished.prompts[bad]!r}; at least one must score each completion (0.0 is a score)."
            )
        return total


def _score_tokens(function: RewardFunction) -> Any:
    """Returns `function.score_tokens` or None; ignores a copy by functools.wraps: the wrapper may score differently."""
    return None if hasattr(function, "__wrapped__") else getattr(function, "score_tokens", None)


def _call(
    function: RewardFunction, finished: FinishedCompletions | CompletionLists
) -> tuple[NDArray[np.float64], set[int]]:
    """Returns a function's score of each completion, 0 where it is None, and the rows where it is None."""
    score_tokens = _score_tokens(function)
    if score_tokens is not None and isinstance(finished, FinishedCompletions) and finished.prompt.min() >= 0:
        returned = score_tokens(finished.prompt, finished.tokens, finished.length)
    else:
        returned = function(
            prompts=list(finished.prompts),  # copies: a function that changes them does not affect the next one
            completions=list(finished.completions),
            completion_ids=[list(ids) for ids in finished.completion_ids],
            **{name: list(values) for name, values in finished.columns.items()},
        )
    name = getattr(function, "__name__", type(function).__name__)
    if returned is None:
        raise ValueError(f"The reward function {name!r} must return one score per completion, got None: no return?")
    if isinstance(returned, np.ndarray) and returned.ndim == 1 and returned.dtype.kind == "f":
        scores, none = returned.astype(np.float64, copy=False), set()
    else:
        try:
            returned = returned.tolist() if hasattr(returned, "tolist") else list(returned)
            scores = np.array([0.0 if score is None else score for score in returned], dtype=np.float64)
        except (TypeError, ValueError):
            scores = np.zeros((0, 0))
        if scores.ndim != 1:
            raise ValueError(
                f"The reward function {name!r} must return a list of numbers or None, one per completion, got "
                f"{returned!r}."
            )
        none = {row for row, score in enumerate(returned) if score is None}
    if len(returned) != len(finished):
        raise ValueError(
            f"The reward function {name!r} must return one score per completion: {len(finished)}, got {len(returned)}."
        )
    if not np.isfinite(scores).all():
        bad = int(np.argmin(np.isfinite(scores)))
        raise ValueError(
            f"The reward function {name!r} must return finite numbers, got {scores[bad]} "
            f"for {finished.completions[bad]!r} after {finished.prompts[bad]!r}."
        )
    return scores, none
