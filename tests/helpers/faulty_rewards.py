"""Reward functions that each break one rule, and one that breaks none: at module level, so that they pickle."""

from __future__ import annotations

import os
import random
import sys
from typing import Any

import numpy as np

Lists = list[Any]


def sound(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Breaks no rule: it depends on the prompt and on every token with its position."""
    return [
        len(p) / 8 + sum((i + 1) * t for i, t in enumerate(ids)) / 16
        for p, ids in zip(prompts, completion_ids, strict=True)
    ]


# -- what is returned ------------------------------------------------------------------------------------------------


def one_too_few(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Returns a list that is too short."""
    return sound(prompts, completions, completion_ids)[1:]


def nan_for_short(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Returns nan for completions of one token."""
    return [float("nan") if len(ids) == 1 else 1.0 for ids in completion_ids]


def infinite(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Returns infinity."""
    return [float("inf")] * len(prompts)


def a_string(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Returns strings."""
    return ["1.0"] * len(prompts)


def none_for_all(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Applies to no completion."""
    return [None] * len(prompts)


def raises_on_empty(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Takes the first word of a completion that has none."""
    return [float(len(completion.split()[0])) for completion in completions]


def exits(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Ends the process."""
    sys.exit(3)


# -- the same again, alone, in another order, batch and process ------------------------------------------------------

_GENERATOR = np.random.default_rng(0)
_CALLS = [0]
_SEEN: dict[str, float] = {}


def noisy(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Draws from a generator of its own, with the standard deviation 0.5."""
    return [score + 0.5 * _GENERATOR.normal() for score in sound(prompts, completions, completion_ids)]


def drawing(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Draws from the global generator, and uses nothing of it."""
    random.random()
    return sound(prompts, completions, completion_ids)


def counting(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Adds the number of calls so far."""
    _CALLS[0] += 1
    return [score + _CALLS[0] for score in sound(prompts, completions, completion_ids)]


def novelty(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Scores a text that it has seen before lower."""
    scores = []
    for completion in completions:
        _SEEN[completion] = _SEEN.get(completion, 0.0) + 1.0
        scores.append(1.0 / _SEEN[completion])
    return scores


def by_position(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Adds the position in the batch."""
    return [score + row / 50 for row, score in enumerate(sound(prompts, completions, completion_ids))]


def sorted_scores(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Returns the scores of the batch in another order."""
    return sorted(sound(prompts, completions, completion_ids))


def by_batch_size(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Divides by the size of the batch."""
    return [score / len(prompts) for score in sound(prompts, completions, completion_ids)]


def normalised(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Subtracts the batch's mean and divides by its standard deviation."""
    scores = np.array(sound(prompts, completions, completion_ids))
    return ((scores - scores.mean()) / (scores.std() + 1e-6)).tolist()


def needs_company(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Fails on one completion alone."""
    if len(prompts) < 2:
        raise ValueError("two at least")
    return sound(prompts, completions, completion_ids)


def by_hash(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Depends on the seed of `hash`, which is another one in each process."""
    return [float(hash(completion) % 7) for completion in completions]


def fails_elsewhere(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Fails in a process that has not imported pytest."""
    if "pytest" not in sys.modules:
        raise RuntimeError("no pytest here")
    return sound(prompts, completions, completion_ids)


def ends_elsewhere(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Ends a process that has not imported pytest, without an error."""
    if "pytest" not in sys.modules:
        os._exit(0)
    return sound(prompts, completions, completion_ids)


# -- arguments -------------------------------------------------------------------------------------------------------


def changes_prompts(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Empties the list of prompts."""
    scores = sound(prompts, completions, completion_ids)
    prompts.clear()
    return scores


def changes_completions(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Strips the completions in place."""
    completions[0] = completions[0] + "."
    return sound(prompts, completions, completion_ids)


def changes_ids(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Takes the last token off."""
    scores = sound(prompts, completions, completion_ids)
    for ids in completion_ids:
        ids.pop()
    return scores


def changes_columns(prompts: Lists, completions: Lists, completion_ids: Lists, fact: Lists, **columns: Any) -> Lists:
    """Changes a value inside a column."""
    fact[0].append("more")
    return sound(prompts, completions, completion_ids)


def missing_column(
    prompts: Lists, completions: Lists, completion_ids: Lists, answer: Any = None, **columns: Any
) -> Lists:
    """Has a parameter for a column that the prompts lack."""
    return sound(prompts, completions, completion_ids)


def logging(
    prompts: Lists, completions: Lists, completion_ids: Lists, trainer_state: Any, log_extra: Any, log_metric: Any
) -> Lists:
    """Takes what a trainer hands over: breaks no rule."""
    log_extra("letters", [len(completion) for completion in completions])
    log_metric("step", trainer_state.global_step)
    return sound(prompts, completions, completion_ids)


async def asynchronous(prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
    """Async: breaks no rule."""
    return sound(prompts, completions, completion_ids)


class TokenScores:
    """Scores texts, and token ids by `score_tokens`, which adds `error`."""

    __name__ = "token_scores"

    def __init__(self, error: float = 0.0) -> None:
        self.error = error

    def __call__(self, prompts: Lists, completions: Lists, completion_ids: Lists, **columns: Any) -> Lists:
        """The sum of the ids."""
        return [float(sum(ids)) for ids in completion_ids]

    def score_tokens(self, prompt: np.ndarray, tokens: np.ndarray, length: np.ndarray) -> np.ndarray:
        """The sum of the ids, and the error where the first is 1."""
        return np.asarray(tokens.sum(axis=1) + self.error * (tokens[:, 0] == 1), dtype=np.float64)
