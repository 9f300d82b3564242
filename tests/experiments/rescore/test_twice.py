"""Means with standard errors of two scores, by hand; and the tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.console import plain_console
from experiments.rescore.kept import KeptCompletion, Sampled, name_reward
from experiments.rescore.tables import differences_table, policies_table
from experiments.rescore.twice import ScoredTwice, policies


def scored(own: list[float], new: list[float], agent: str = "ppo", name: str = "", prompts: str = "") -> ScoredTwice:
    """Completions with these scores; `prompts` has a letter for each."""
    texts = prompts or "p" * len(own)
    completions = [KeptCompletion(texts[i], f"c{i}", [i], {}, score) for i, score in enumerate(own)]
    return ScoredTwice(Sampled(name or agent, agent, completions), np.array(own, float), np.array(new, float))


def test_means_and_errors_by_hand() -> None:
    """Over prompts, with the spread within them; of an agent over its seeds; of one completion there is no error."""
    first, second = scored([1, 3, 10, 10], [0, 0, 1, 1], prompts="aabb"), scored([4, 4], [2, 6], prompts="ab")
    (own, new), (other, _) = first.means(), second.means()
    assert own.value == 6 and new.value == 0.5 and new.stderr == 0 and other == (4, 0)
    assert own.stderr == pytest.approx(math.sqrt(2 / 2 + 0) / 2)  # the variance of prompt a's mean is 2 / 2
    assert math.isnan(scored([1], [1]).means()[0].stderr) and math.isnan(scored([], []).means()[0].value)
    rows = policies([scored([0], [0], agent="", name="before"), first, second])
    assert [(row.name, row.num_completions) for row in rows] == [
        ("before", 1),
        ("ppo", 4),
        ("ppo", 2),
        ("ppo, 2 seeds", 6),
    ]
    assert rows[-1].own.value == 5 and rows[-1].own.stderr == pytest.approx(1.0)  # of 6 and 4
    assert [row.ranks.value is None for row in rows] == [True, True, True, False]  # ppo: equal within prompts
    assert [row.ranks.num_distinct for row in rows] == [1, 4, 2, 5]  # c0 of prompt a is sampled with both seeds


def test_where_they_differ_most(tmp_path: Path) -> None:
    """The largest differences of ranks, each completion once; control characters are shown as escapes."""
    both = scored([1, 2, 3, 4], [4, 2, 3, 1])
    table = differences_table([both, both], 5)
    path = tmp_path / "tables.txt"
    with path.open("w") as file:
        console = plain_console(width=100, file=file)
        console.print(table)
        console.print(policies_table(policies([both]), "own\x1b[31m", "new"))
    printed = path.read_text()
    assert [line.count(f" c{i} ") for i in range(4) for line in [printed]] == [1, 0, 0, 1]
    assert "+75%" in printed and "-75%" in printed and "\x1b" not in printed and r"own\x1b[31m" in printed
    assert " -0.80 " in printed and "± 0.58" in printed and "by chance" in printed
    assert differences_table([scored([1, 2, 4], [3, 9, 27])], 5) == "The two rewards rank all completions alike."
    for few in (scored([1, 2], [2, 1]), scored([1, 2, 3], [0, 0, 0])):
        assert str(differences_table([few], 5)).startswith("No ranks to compare")


def test_the_name_of_a_weighted_sum() -> None:
    """With its weights where there are any."""
    assert name_reward(["vader", "a:b"], None) == "vader + a:b"
    assert name_reward(["vader", "a:b"], [1.0, -0.5]) == "1.0 * vader + -0.5 * a:b"
