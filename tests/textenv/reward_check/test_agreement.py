"""A second reward: correlation and what the optimum makes of it, where both are known."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import mdp
from textenv import exact
from textenv.exact import MIN_EFFECTIVE_SAMPLES
from textenv.reward_check import Finding, Table, check_reward
from textenv.reward_check.agreement import check_agreement
from textenv.reward_check.optimum import shift, weights_of_optimum
from textenv.reward_check.samples import Samples, draw_samples


@pytest.fixture(scope="module")
def samples() -> Samples:
    """256 completions of each of 4 prompts."""
    return draw_samples(mdp(kl_coef=1.0), 256, 4, seed=0)


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
    """The second reward of pi* is that of the reference, within its error: in most of 20 draws, and it never falls."""
    verdicts = []
    for seed in range(20):
        scores, gold = np.random.default_rng(seed).normal(size=(2, 1024))
        found, _ = agreement(samples, scores, gold)
        assert (
            found["rank correlation"].verdict == "look here" and abs(float(found["rank correlation"].text[:5])) < 0.15
        )
        verdicts.append(found["under the optimum"].verdict)
    assert "broken" not in verdicts and verdicts.count("holds") >= 17


class Exact:
    """The mean gold reward under pi* of RewardHacking-v0, by enumeration."""

    def __init__(self, env: Any) -> None:
        task, tree = env.unwrapped.mdp, exact.enumerate_tree(env)
        state, action = tree.leaves()
        tokens = [[int(t) for t in tree.tokens[s] if t >= 0] + [int(a)] for s, a in zip(state, action, strict=True)]
        length = np.array([len(ids) for ids in tokens])
        grid = np.array([ids + [0] * (task.max_new_tokens - len(ids)) for ids in tokens])
        prompt = tree.prompt[state]
        texts = np.array(task.prompts.texts, dtype=object)[prompt]
        self.env, self.gold = env, task.gold_reward.score(task.finished(prompt, texts, grid, length))

    def at(self, beta: float) -> float:
        """Of one beta."""
        return float(np.exp(exact.solve(self.env, kl_coef=beta).log_probs) / 4 @ self.gold)


@pytest.mark.parametrize("seed", range(4))
def test_both_rewards_under_the_optimum_are_the_exact_ones(seed: int) -> None:
    """Of RewardHacking-v0 as users call it, at each beta that is reported: within 4 standard errors.

    Control: the plain estimate at the task's beta, which is not reported; of the first seed its error is small, too.
    """
    env = gym.make("textenv/RewardHacking-v0")
    task: Any = env.unwrapped.mdp  # type: ignore[attr-defined]
    report, by_enumeration = check_reward(env, other_process=False, seed=seed), Exact(env)
    along = next(table for table in report.tables if table.title.startswith("both rewards"))
    *estimated, at_task = along.rows
    assert len(estimated) == 4 and at_task[:4] == [task.kl_coef, None, None, None]
    for beta, _, second, stderr, effective in estimated:
        assert second == pytest.approx(by_enumeration.at(float(beta)), abs=4 * float(stderr))  # type: ignore[arg-type]
        assert float(effective) >= MIN_EFFECTIVE_SAMPLES > float(at_task[4])  # type: ignore[arg-type]
    assert report["under the optimum"].verdict == "look here"
    assert "at the task's beta, 0.1, it cannot be estimated" in report["under the optimum"].text
    samples = draw_samples(task, 64, 16, seed)
    scores, gold = (reward.score(samples.finished) for reward in (task.reward, task.gold_reward))
    _, plain, stderr = shift(samples, gold, weights_of_optimum(samples, scores, task.kl_coef))
    assert abs(plain - by_enumeration.at(task.kl_coef)) > 4 * stderr or seed != 0  # control


def test_with_more_completions_the_fall_is_seen() -> None:
    """The gold reward of RewardHacking-v0 is larger at beta 0.4 than at 0.2."""
    report = check_reward(gym.make("textenv/RewardHacking-v0"), num_completions=1000, other_process=False)
    assert "it falls where more is optimised" in report["under the optimum"].text


def test_what_the_completions_cannot_estimate_is_not_reported() -> None:
    """A second reward that is the first, at a beta where pi* has 20 and the best of 256 completions about 3."""
    samples = draw_samples(mdp(kl_coef=0.05), 256, 4, seed=0)
    scores = np.random.default_rng(0).normal(size=1024)
    found, (along, _) = agreement(samples, scores, scores)
    assert all(float(row[0]) > 0.3 for row in along.rows if row[2] is not None)  # type: ignore[arg-type]
    assert along.rows[-1][:4] == [0.05, None, None, None]
    assert found["under the optimum"].verdict == "look here"


def test_what_one_of_the_two_does_not_score_is_left_out(samples: Samples) -> None:
    """Completions without a score, and those without a second one."""
    scores = np.random.default_rng(0).normal(size=1024)
    gold = scores.copy()
    scores[::3], gold[1::3] = np.nan, np.nan
    found, (along, _) = agreement(samples, scores, gold)
    assert "over 341 completions" in found["rank correlation"].text
    known = ~np.isnan(scores + gold)
    assert all(gold[known].min() <= float(row[2]) <= gold[known].max() for row in along.rows)  # type: ignore[arg-type]


def test_a_constant_second_reward_is_no_agreement(samples: Samples) -> None:
    """There is no correlation with it."""
    found, _ = agreement(samples, np.random.default_rng(0).normal(size=1024), np.full(1024, 0.1))
    assert found["rank correlation"].verdict == "look here" and "nan" not in found["rank correlation"].text
    assert found["under the optimum"].verdict == "holds"
