"""Completions with two scores: the means of each policy with standard errors, and the rank correlation of the two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.files import JsonObject
from experiments.evaluation import mean_over_prompts
from experiments.rescore.kept import KeptCompletion, Sampled
from experiments.rescore.ranks import RankCorrelation, rank_correlation
from experiments.token_samples import DIGITS

Array = NDArray[np.float64]


class Mean(NamedTuple):
    """A mean and its standard error, nan where there is none."""

    value: float
    stderr: float


@dataclass(frozen=True)
class ScoredTwice:
    """Completions of one policy under two rewards.

    Attributes:
        sampled: N completions.
        own: their scores under the run's own reward, [N]; nan where it failed.
        new: their scores under the other one, [N]; nan where it returned None.
    """

    sampled: Sampled
    own: Array
    new: Array

    @classmethod
    def of(cls, sampled: Sampled, rescorer: Callable[[Sequence[KeptCompletion]], Array]) -> ScoredTwice:
        """Scores completions (see `Rescorer`), in float32 and rounded, as a run keeps scores: equal ones stay equal."""
        own = np.array([np.nan if each.score is None else each.score for each in sampled.completions])
        new = rescorer(sampled.completions).astype(np.float32).astype(np.float64)
        return cls(sampled, own, np.round(new, DIGITS))

    def means(self) -> tuple[Mean, Mean]:
        """The mean over prompts of both scores; standard errors are over completions, the prompts are given."""
        prompts = {
            prompt: i for i, prompt in enumerate(dict.fromkeys(each.prompt for each in self.sampled.completions))
        }
        prompt = np.array([prompts[each.prompt] for each in self.sampled.completions], dtype=np.int64)
        found = []
        for values in (self.own, self.new):
            known = ~np.isnan(values)
            found.append(_mean(values[known], prompt[known]))
        return found[0], found[1]

    def compared(self) -> tuple[list[tuple[str, str]], Array, Array]:
        """What `rank_correlation` takes: prompts with completions, and both scores."""
        return [(each.prompt, each.completion) for each in self.sampled.completions], self.own, self.new

    def as_json(self) -> list[JsonObject]:
        """Each completion with both scores."""
        return [
            {"policy": self.sampled.name, **each._asdict(), "new_score": None if np.isnan(new) else float(new)}
            for each, new in zip(self.sampled.completions, self.new, strict=True)
        ]


@dataclass(frozen=True)
class PolicyScores:
    """A row of the table.

    Attributes:
        name: of the policy; of an agent, with its number of seeds.
        num_completions: N.
        own, new: the means under both rewards.
        ranks: the rank correlation of the two, within prompts and over distinct completions.
    """

    name: str
    num_completions: int
    own: Mean
    new: Mean
    ranks: RankCorrelation

    def as_json(self) -> JsonObject:
        """The row as a JSON object."""
        pairs = {"own": self.own._asdict(), "new": self.new._asdict(), "ranks": self.ranks._asdict()}
        return dataclasses.asdict(self) | pairs


def policies(scored: Sequence[ScoredTwice]) -> list[PolicyScores]:
    """A row for each policy; below the trials of an agent with several seeds, one for the agent.

    The agent's mean is that of its seeds' means, and its standard error is over seeds: so it also counts how far the
    trials went apart. Its rank correlation is over the distinct completions of all seeds.
    """
    rows: list[PolicyScores] = []
    for agent in dict.fromkeys(each.sampled.agent for each in scored):
        own = [each for each in scored if each.sampled.agent == agent]
        rows += [
            PolicyScores(each.sampled.name, len(each.new), *each.means(), rank_correlation(*each.compared()))
            for each in own
        ]
        if len(own) > 1:
            keys, *both = zip(*(each.compared() for each in own), strict=True)
            ranks = rank_correlation([key for seed in keys for key in seed], *map(np.concatenate, both))
            count = sum(len(each.new) for each in own)
            means = [_over_seeds([each.means()[k].value for each in own]) for k in range(2)]
            name = f"{agent}, {len(own)} seeds"
            rows.append(PolicyScores(name, count, means[0], means[1], ranks))
    return rows


def _over_seeds(means: Sequence[float]) -> Mean:
    return Mean(float(np.mean(means)), float(np.std(means, ddof=1)) / math.sqrt(len(means)))


def _mean(values: Array, prompt: NDArray[np.int64]) -> Mean:
    if len(values) < 2:
        return Mean(float(values.mean()) if len(values) else math.nan, math.nan)
    return Mean(*mean_over_prompts(values, prompt))
