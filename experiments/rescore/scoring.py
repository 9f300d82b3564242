"""Scores kept completions under another reward, which is called as the task would call it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from experiments.errors import FlagError
from experiments.rescore.kept import LARGEST_SCORE, KeptCompletion
from textenv.data import Prompts, Tokenizer
from textenv.rewards import (
    TRAINER_ARGUMENTS,
    FinishedCompletions,
    RewardError,
    RewardFunction,
    WeightedReward,
    call_reward,
    without_score_tokens,
)

GIVEN = {"prompts", "completions", "completion_ids", *TRAINER_ARGUMENTS}  # to every reward function


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
            self.reward = WeightedReward([without_score_tokens(function) for _, function in functions], weights)
        except (TypeError, ValueError) as error:
            raise FlagError(f"--reward: {error}") from error

    def __call__(self, completions: Sequence[KeptCompletion]) -> NDArray[np.float64]:
        """Scores [N] of N completions, which are scored in one batch, as they were when they were sampled.

        Nan where all functions returned None: the reward does not apply to that completion.

        Raises:
            FlagError: a function needs a column that the completions do not have; or a sum is too large for float32.
            RewardError: a function failed.
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
        finished = _finished(completions, columns)
        try:
            parts = [_scores(function, finished) for function in self.reward.functions]
        except RewardError as error:
            error.add_note(f"The columns that the run has kept: {', '.join(columns) or 'none'}.")
            raise
        weighted = np.stack([weight * part for weight, part in zip(self.reward.weights, parts, strict=True)])
        total = np.where(np.isnan(weighted).all(axis=0), np.nan, np.nansum(weighted, axis=0))
        if (np.abs(total) > LARGEST_SCORE).any():  # false of nan
            raise FlagError("--reward-weights: the weighted sum of the scores must be finite in float32; lower them.")
        return total


def _scores(function: RewardFunction, finished: FinishedCompletions) -> NDArray[np.float64]:
    """The scores of one function, [N], nan where it returned None.

    Raises:
        RewardError: it failed; names the first completion that fails alone, if one does.
    """
    try:
        return call_reward(function, finished)
    except RewardError as error:
        if error.whole_batch:
            for row in range(len(finished)):
                call_reward(function, finished.select(row))
        raise


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
