"""Finished completions made of lists, for tests of reward functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from textenv.rewards import FinishedCompletions, WeightedReward


class CompletionLists(FinishedCompletions):
    """Finished completions as the lists that a reward function takes, of prompts that are in no task."""

    def __init__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], columns: dict[str, list[Any]]
    ) -> None:
        self.prompt = np.full(len(prompts), -1)
        self.prompts, self.completions, self.completion_ids = prompts, completions, completion_ids
        self.columns, self.extra = columns, {}

    def select(self, row: int) -> CompletionLists:
        """One of the completions alone."""
        columns = {name: [values[row]] for name, values in self.columns.items()}
        return CompletionLists([self.prompts[row]], [self.completions[row]], [self.completion_ids[row]], columns)

    def arguments(self) -> dict[str, list[Any]]:
        """The lists as they were given."""
        return {
            "prompts": list(self.prompts),
            "completions": list(self.completions),
            "completion_ids": [list(ids) for ids in self.completion_ids],
            **{name: list(values) for name, values in self.columns.items()},
        }


def score_lists(
    reward: WeightedReward,
    prompts: list[Any],
    completions: list[Any],
    completion_ids: list[list[int]],
    columns: dict[str, list[Any]],
) -> np.ndarray:
    """The scores of completions that are given as lists, [B]."""
    return reward.score(CompletionLists(prompts, completions, completion_ids, columns))
