"""Scores of finished texts. A reward function has TRL's signature:

    fn(prompts, completions, completion_ids, **columns) -> list[float | None]

one call for a whole batch; `None` means "does not apply to this text". `columns` are the prompts' further fields.

A function that only counts tokens may also have `score_tokens(prompt, tokens, length)`, the same scores from arrays:
`prompt` [K] the index of each prompt, `tokens` [K, T] the answers, 0 beyond their ends, `length` [K]. It is asked
instead where all prompts are in the list, and no list or string is made for it. It must always say the same of the
same text: a `TextVectorEnv` of few texts asks for all of them when it is made (`textenv.walk`), a `TextEnv` for each
when it is first written.
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
    """Finished texts as a reward function takes them."""

    prompts: list[str]
    completions: list[str]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.prompts)


class WeightedReward:
    """The score of a text: the weighted sum of one or more reward functions.

    score(x, y) = sum_k w_k fn_k(x, y), over the functions that do not answer None.

    Args:
        functions: one reward function or several.
        weights: w_k, by default 1 each.
        name: what errors call the functions.

    Raises:
        TypeError: something is not callable.
        ValueError: not one weight a function.
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
                f"reward_weights must be one finite number a function ({len(self.functions)}), "
                f"got {list(self.weights)}."
            )

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], columns: dict[str, list[Any]]
    ) -> NDArray[np.float64]:
        """`score` of texts that are given as lists."""
        return self.score(CompletionLists(prompts, completions, completion_ids, columns))

    @property
    def is_pure(self) -> bool:
        """Whether each function has `score_tokens`: the same text always scores the same."""
        return all(_score_tokens(function) is not None for function in self.functions)

    def score(self, texts: FinishedCompletions | CompletionLists) -> NDArray[np.float64]:
        """Scores [B] of B finished texts.

        Raises:
            ValueError: a function returns the wrong number of scores, a NaN or an infinity, or all of them return
                None for one text.
        """
        total, silent = np.zeros(len(texts)), None
        for weight, function in zip(self.weights, self.functions, strict=True):
            scores, none = _ask(function, texts)
            total += weight * scores
            silent = none if silent is None else silent & none
        if silent:
            bad = min(silent)
            raise ValueError(
                f"Every reward function returned None for {texts.completions[bad]!r} after {texts.prompts[bad]!r}; "
                "at least one must score each text (0.0 is a score)."
            )
        return total


def _score_tokens(function: RewardFunction) -> Any:
    """`score_tokens` where the function has one; functools.wraps copies it to functions that may well score otherwise."""
    return None if hasattr(function, "__wrapped__") else getattr(function, "score_tokens", None)


def _ask(
    function: RewardFunction, texts: FinishedCompletions | CompletionLists
) -> tuple[NDArray[np.float64], set[int]]:
    """What a function says of each text, 0 where it says None; and the texts of which it says None."""
    score_tokens = _score_tokens(function)
    if score_tokens is not None and isinstance(texts, FinishedCompletions) and texts.prompt.min() >= 0:
        answer = score_tokens(texts.prompt, texts.tokens, texts.length)
    else:
        answer = function(
            prompts=list(texts.prompts),  # copies: what a function does with them is nothing that the next one sees
            completions=list(texts.completions),
            completion_ids=[list(ids) for ids in texts.completion_ids],
            **{name: list(values) for name, values in texts.columns.items()},
        )
    name = getattr(function, "__name__", type(function).__name__)
    if answer is None:
        raise ValueError(f"The reward function {name!r} must return one score a text, got None: no return?")
    if isinstance(answer, np.ndarray) and answer.ndim == 1 and answer.dtype.kind == "f":
        scores, none = answer.astype(np.float64, copy=False), set()
    else:
        try:
            answer = answer.tolist() if hasattr(answer, "tolist") else list(answer)
            scores = np.array([0.0 if score is None else score for score in answer], dtype=np.float64)
        except (TypeError, ValueError):
            scores = np.zeros((0, 0))
        if scores.ndim != 1:
            raise ValueError(
                f"The reward function {name!r} must return a list of numbers or None, one a text, got {answer!r}."
            )
        none = {row for row, score in enumerate(answer) if score is None}
    if len(answer) != len(texts):
        raise ValueError(f"The reward function {name!r} must return one score a text: {len(texts)}, got {len(answer)}.")
    if not np.isfinite(scores).all():
        bad = int(np.argmin(np.isfinite(scores)))
        raise ValueError(
            f"The reward function {name!r} must return finite numbers, got {scores[bad]} "
            f"for {texts.completions[bad]!r} after {texts.prompts[bad]!r}."
        )
    return scores, none


def __getattr__(name: str) -> Any:
    """`RewardModel` needs torch, which the rest of the environment does not."""
    if name == "RewardModel":
        from textenv.rewards.classifier import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
