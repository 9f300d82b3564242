"""Scores kept completions under another reward, which is called as the task would call it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from experiments.errors import FlagError
from experiments.rescore.kept import KeptCompletion
from textenv.data import Prompts, Tokenizer
from textenv.rewards import FinishedCompletions, RewardError, RewardFunction, WeightedReward

GIVEN = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}


class Rescorer:
    """The weighted sum of reward functions, as a score of kept completions.

    `score_tokens` of a function is not used: it takes the indices of the task's prompts, which are not known here.

    Args:
        functions: the reward functions, by the names that the command line gives.
        weights: one for each function; None: 1 each.

    Raises:
        FlagError: the weights are not one number per function, or something is no reward function.
    """

    def __init__(self, functions: Sequence[tuple[str, RewardFunction]], weights: Sequence[float] | None) -> None:
        if weights is not None and len(weights) != len(functions):
            raise FlagError(
                f"--reward-weights must be one number for each --reward, got {len(weights)} for {len(functions)}."
            )
        self.names = [name for name, _ in functions]
        try:
            self.reward = WeightedReward([_without_score_tokens(function) for _, function in functions], weights)
        except (TypeError, ValueError) as error:
            raise FlagError(f"--reward: {error}") from error

    def __call__(self, completions: Sequence[KeptCompletion]) -> NDArray[np.float64]:
        """Scores [N] of N completions, which are scored in one batch, as they were when they were sampled.

        Raises:
            FlagError: a function needs a column that the completions do not have.
            RewardError: a function failed; see `WeightedReward.score`.
        """
        if not completions:
            return np.empty(0)
        columns = sorted(set.intersection(*(set(each.columns) for each in completions)))
        for name, function in zip(self.names, self.reward.functions, strict=True):
            if missing := sorted(_required(function) - GIVEN - set(columns)):
                raise FlagError(
                    f"--reward {name} needs the column {missing[0]!r}, which the run has not kept; it has "
                    f"{', '.join(columns) or 'none'}. Its prompts must have that field when the run is trained."
                )
        try:
            return self.reward.score(_finished(completions, columns))
        except RewardError as error:
            error.add_note(f"The columns that the run has kept: {', '.join(columns) or 'none'}.")
            raise


def _without_score_tokens(function: RewardFunction) -> RewardFunction:
    """A function that is called with texts: a copy by `functools.wraps` has no `score_tokens` of its own."""
    if not hasattr(function, "score_tokens"):
        return function

    @functools.wraps(function)
    def with_texts(**arguments: object) -> object:
        return function(**arguments)

    return cast("RewardFunction", with_texts)


def _required(function: RewardFunction) -> set[str]:
    """The arguments without a default that a function takes by name."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature, or what is no function
        return set()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name for name, each in parameters.items() if each.kind in named and each.default is each.empty}


def _finished(completions: Sequence[KeptCompletion], columns: Sequence[str]) -> FinishedCompletions:
    """The completions as a task finishes them; each has a prompt of its own in the list."""
    count = len(completions)
    length = np.array([len(each.token_ids) for each in completions], dtype=np.int64)
    tokens = np.zeros((count, int(length.max())), dtype=np.int64)
    for row, each in zip(tokens, completions, strict=True):
        row[: len(each.token_ids)] = each.token_ids
    texts = np.empty(count, dtype=np.object_)
    texts[:] = [each.prompt for each in completions]
    fields = {name: [each.columns[name] for each in completions] for name in columns}
    no_ids = np.zeros((count, 0), dtype=np.int64)
    listed = Prompts(texts.tolist(), no_ids, no_ids.astype(np.int8), fields)
    saved = cast("Tokenizer", _SavedTexts(completions))  # of a tokenizer, completions need `decode` alone
    return FinishedCompletions(saved, listed, np.arange(count), texts, tokens, length)


class _SavedTexts:
    """Stands for the run's tokenizer: decodes the token ids of completions to the texts that were saved with them."""

    def __init__(self, completions: Sequence[KeptCompletion]) -> None:
        self.texts = {tuple(each.token_ids): each.completion for each in completions}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The saved text."""
        return self.texts[tuple(token_ids)]
