"""A second reward: correlation and what the optimum makes of it, where both are known."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import mdp
from textenv import exact
from textenv.reward_check import Finding, Table
from textenv.reward_check.agreement import check_agreement
from textenv.reward_check.samples import Samples, draw_samples


@pytest.fixture(scope="module")
def samples() -> Samples:
    """256 completions of each of 4 prompts."""
    return draw_samples(mdp(kl_coef=0.5), 256, 4, seed=0)


def agreement(samples: Samples, scores: Any, gold: Any) -> tuple[dict[str, Finding], list[Table]]:
    """The findings by name and the tables; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, tables = check_agreement(samples, np.asarray(scores), np.asarray(gold))
    return {each.name: each for each in found}, tables


def test_rewards_that_agree(samples: Samples) -> None:
    """Any increasing function, whatever is added to a prompt. Control: a decreasing one is broken."""
    scores = np.random.default_rng(0).normal(size=1024)
    found, (_, pairs) = agreement(samples, scores, np.exp(scores) + samples.finished.prompt)
    assert {each.verdict for each in found.values()} == {"holds"} and not pairs.rows
    assert found["rank correlation"].text.startswith("+1.00")
    found, (_, pairs) = agreement(samples, scores, -scores)
    assert found["rank correlation"].text.startswith("-1.00") and found["rank correlation"].verdict == "look here"
    assert found["under the optimum"].verdict == "broken" and "lowers it" in found["under the optimum"].text
    assert len(pairs.rows) == 4


def test_the_pair_that_differs_most_is_named(samples: Samples) -> None:
    """Two completions of a prompt whose order is reversed, among others that agree."""
    scores = np.random.default_rng(0).normal(size=1024)
    gold = scores.copy()
    low, high = int(scores[256:512].argmin()) + 256, int(scores[256:512].argmax()) + 256
    gold[[low, high]] = gold[[high, low]]
    _, (_, pairs) = agreement(samples, scores, gold)
    assert pairs.rows[0][2:4] == [scores[high], gold[high]] and pairs.rows[0][5:7] == [scores[low], gold[low]]


def test_independent_rewards_neither_agree_nor_fall(samples: Samples) -> None:
    """The second reward of pi* is that of the reference, within its error."""
    for seed in range(10):
        scores, gold = np.random.default_rng(seed).normal(size=(2, 1024))
        found, _ = agreement(samples, scores, gold)
        assert (
            found["rank correlation"].verdict == "look here" and abs(float(found["rank correlation"].text[:5])) < 0.15
        )
        assert found["under the optimum"].verdict != "broken"


def test_both_rewards_under_the_optimum_are_the_exact_ones() -> None:
    """Of RewardHacking-v0, at each beta: within 4 standard errors. Control: those of the reference are not."""
    env = gym.make("textenv/RewardHacking-v0", kl_coef=0.5)
    task: Any = env.unwrapped.mdp  # type: ignore[attr-defined]
    samples = draw_samples(task, 2000, 4, seed=0)
    scores, gold = (reward.score(samples.finished) for reward in (task.reward, task.gold_reward))
    _, (along, _) = agreement(samples, scores, gold)
    tree = exact.enumerate_tree(env)
    state, action = tree.leaves()
    tokens = [[int(t) for t in tree.tokens[s] if t >= 0] + [int(a)] for s, a in zip(state, action, strict=True)]
    length = np.array([len(ids) for ids in tokens])
    grid = np.array([ids + [0] * (task.max_new_tokens - len(ids)) for ids in tokens])
    prompt = tree.prompt[state]
    finished = task.finished(prompt, np.array(task.prompts.texts, dtype=object)[prompt], grid, length)
    exact_gold = task.gold_reward.score(finished)
    for beta, _, second, stderr in along.rows[:4]:  # the task's beta at the smallest: 2,000 completions can do it
        probabilities = np.exp(exact.solve(env, kl_coef=float(beta)).log_probs) / 4  # type: ignore[arg-type]
        assert second == pytest.approx(probabilities @ exact_gold, abs=4 * float(stderr))  # type: ignore[arg-type]
        assert abs(float(second) - gold.mean()) > 10 * float(stderr)  # type: ignore[arg-type]  # control


def test_what_one_of_the_two_does_not_score_is_left_out(samples: Samples) -> None:
    """Completions without a score, and those without a second one."""
    scores = np.random.default_rng(0).normal(size=1024)
    gold = scores.copy()
    scores[::3], gold[1::3] = np.nan, np.nan
    found, (along, _) = agreement(samples, scores, gold)
    assert "over 341 completions" in found["rank correlation"].text
    known = ~np.isnan(scores + gold)
    assert all(
        low <= float(row[2]) <= high for row in along.rows for low, high in [(gold[known].min(), gold[known].max())]
    )  # type: ignore[arg-type]


def test_a_constant_second_reward_is_no_agreement(samples: Samples) -> None:
    """There is no correlation with it."""
    found, _ = agreement(samples, np.random.default_rng(0).normal(size=1024), np.full(1024, 0.1))
    assert found["rank correlation"].verdict == "look here" and "nan" not in found["rank correlation"].text
    assert found["under the optimum"].verdict == "holds"
