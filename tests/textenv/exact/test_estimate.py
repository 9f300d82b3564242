"""J* from completions of the reference: by its definition, and beside the exact J* of toys."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.tasks import letter_values, make, words
from textenv import exact
from textenv.exact import OptimumEstimate, estimate_optimum, optimum_from_scores
from textenv.exact.reference_samples import largest_reward, sample_rewards
from textenv.shaping import length_penalty

SEEDS = 300


def toy(beta: float, **arguments: Any) -> Any:
    """Three prompts, completions of up to four of four tokens."""
    return gym.make(
        "textenv/Toy-v0", **({"vocab_size": 4, "max_new_tokens": 4, "num_prompts": 3} | arguments), kl_coef=beta
    )


class Sampled:
    """A toy whose r(x, y) are known, to draw completions from without sampling tokens."""

    def __init__(self, beta: float) -> None:
        self.beta, self.solution = beta, exact.solve(toy(beta))
        tree = self.solution.tree
        prompt = tree.prompt[tree.leaves()[0]]
        log_ref = tree.completion_log_probs(tree.ref_log_probs)
        rewards = beta * (self.solution.log_probs - log_ref) + self.solution.values[tree.levels[0]][prompt]
        self.largest = float(rewards.max())
        self.rows = [(rewards[prompt == p], np.exp(log_ref[prompt == p])) for p in range(3)]

    def estimate(self, count: int, seed: int) -> OptimumEstimate:
        """From `count` completions of each prompt."""
        rng = np.random.default_rng(seed)
        scores = [rng.choice(rewards, count, p=mass / mass.sum()) for rewards, mass in self.rows]
        return optimum_from_scores(scores, self.beta, max_score=self.largest, seed=seed)


def test_it_is_beta_times_the_log_of_a_mean() -> None:
    """With its error and its bias by the delta method, and the effective sample size; nan is left out."""
    scores = np.array([[0.1, 0.5, 0.2, np.nan], [1.0, 1.0, 1.0, 1.0]])
    found = optimum_from_scores(scores, 0.5)
    weights = np.exp(scores[0, :3] / 0.5)
    assert found.objective == pytest.approx((0.5 * np.log(weights.mean()) + 1.0) / 2)
    assert found.effective_sample_size == pytest.approx([weights.sum() ** 2 / (weights**2).sum(), 4.0])
    variance = weights.var(ddof=1) / weights.mean() ** 2 / 3  # of the log of the mean
    assert found.stderr == pytest.approx(0.5 * np.sqrt(variance) / 2)
    assert found.bias == pytest.approx(-0.25 * variance / 2)
    assert found.reference_objective == pytest.approx((0.8 / 3 + 1.0) / 2)
    assert found.interval == (pytest.approx(found.objective - 1.959964 * found.stderr), np.inf)  # few are effective
    many = optimum_from_scores(np.tile(scores, 10), 0.5)
    low, high = many.interval
    assert low == pytest.approx(many.objective - 1.959964 * many.stderr)
    assert high == pytest.approx(many.objective - many.bias + 1.959964 * many.stderr)
    assert found.upper == np.inf
    assert found.normalized_objective(found.objective) == 1.0


@given(st.lists(st.floats(-3, 3), min_size=20, max_size=40), st.floats(-5, 5), st.floats(0.5, 2))
def test_a_constant_moves_it_and_an_order_does_not(scores: list[float], constant: float, beta: float) -> None:
    """J*(r + c) = J*(r) + c; beta and scores times a number are J* times that number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optimum_from_scores([scores], beta)
        moved = optimum_from_scores([np.array(scores[::-1]) + constant], beta)
        scaled = optimum_from_scores([3 * np.array(scores)], 3 * beta)
    assert moved.objective == pytest.approx(found.objective + constant, abs=1e-9)
    assert scaled.objective == pytest.approx(3 * found.objective, abs=1e-9)
    assert moved.stderr == pytest.approx(found.stderr, abs=1e-9)
    assert found.reference_objective <= found.objective + 1e-9 <= max(scores) + 1e-8  # Jensen


def test_the_interval_covers_the_exact_optimum() -> None:
    """In about 95% of seeds; the mean is too small by the bias; the bounds are on either side of J*."""
    sampled = Sampled(beta=0.5)
    found = [sampled.estimate(512, seed) for seed in range(SEEDS)]
    exact_value = sampled.solution.objective
    covered = np.mean([each.interval[0] <= exact_value <= each.interval[1] for each in found])
    assert 0.91 <= covered <= 0.99
    estimates = np.array([each.objective for each in found])
    error = estimates.std() / np.sqrt(SEEDS)
    assert estimates.std() == pytest.approx(np.mean([each.stderr for each in found]), rel=0.15)
    assert estimates.mean() - exact_value == pytest.approx(np.mean([each.bias for each in found]), abs=4 * error)
    assert np.mean([each.upper for each in found]) > exact_value
    assert min(each.effective_sample_size.min() for each in found) > 10


def test_what_else_is_known_of_the_optimum() -> None:
    """KL(pi* || pi_ref) and means under pi* as exactly; the covariance with J_ref as over many seeds."""
    sampled = Sampled(beta=0.5)
    tree = sampled.solution.tree
    best = exact.evaluate_log_probs(tree, sampled.solution.action_log_probs)
    found = [sampled.estimate(512, seed) for seed in range(SEEDS)]
    kls = np.array([each.kl for each in found])
    assert kls.mean() == pytest.approx(best.kl, abs=0.05)
    for each in found[:3]:
        assert each.weights.sum(axis=1) == pytest.approx(1.0) and (each.weights >= 0).all()
    both = np.array([[each.objective, each.reference_objective] for each in found]).T
    assert np.mean([each.covariance for each in found]) == pytest.approx(np.cov(both)[0, 1], rel=0.35)
    scores = np.array([[0.0, 0.5, 1.0, np.nan]])
    one = optimum_from_scores(scores, 0.5)
    weights = np.exp(scores[0, :3] / 0.5) / np.exp(scores[0, :3] / 0.5).sum()
    assert one.weights[0] == pytest.approx([*weights, 0.0])
    assert one.kl == pytest.approx((weights @ scores[0, :3] - one.objective) / 0.5)


def test_few_effective_samples_are_warned_about() -> None:
    """Control of the test above: with a small beta J* is underestimated, which the interval has, and a warning says."""
    sampled = Sampled(beta=0.1)
    with pytest.warns(UserWarning, match=r"of 3 prompts have fewer than 10 effective samples, the least 1\.\d"):
        found = [sampled.estimate(64, seed) for seed in range(20)]
    exact_value = sampled.solution.objective
    assert np.mean([each.objective + 2 * each.stderr < exact_value for each in found]) > 0.5
    assert np.mean([each.interval[0] <= exact_value <= each.interval[1] for each in found]) > 0.9
    assert all(each.interval[1] >= each.upper for each in found)
    assert np.mean([each.upper for each in found]) > exact_value


def test_the_upper_bound_has_one_exact_sample() -> None:
    """It is above J* in the mean, and close where many completions are accepted; without that sample it is below."""
    sampled = Sampled(beta=2.0)
    exact_value = sampled.solution.objective
    found = [sampled.estimate(24, seed) for seed in range(SEEDS)]
    upper, lower = (np.array([getattr(each, name) for each in found]) for name in ("upper", "objective"))
    error = max(upper.std(), lower.std()) / np.sqrt(SEEDS)
    assert exact_value + 2 * error < upper.mean() < exact_value + 0.08
    assert lower.mean() < exact_value + error


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(lambda: toy(0.5), id="toy"),
        pytest.param(lambda: make(words(4, kl_coef=1.0)), id="prompts of several lengths"),
        pytest.param(lambda: make(words(4, kl_coef=1.0, shaping=[length_penalty(0.2)])), id="shaping"),
    ],
)
def test_it_agrees_with_the_exact_solution(env: Any) -> None:
    """Sampled token by token: J* and J of the reference, within four standard errors."""
    env = env()
    found, solution = estimate_optimum(env, 512, seed=1), exact.solve(env)
    assert found.objective == pytest.approx(solution.objective, abs=4 * found.stderr)
    rewards = sample_rewards(env.unwrapped.mdp, 512, seed=1)
    error = 4 * np.sqrt(rewards.var(axis=1).sum() / 512) / len(rewards)
    assert found.reference_objective == pytest.approx(solution.reference_objective, abs=error)
    same, other = (estimate_optimum(env, 512, seed=seed).objective for seed in (1, 2))
    assert same == found.objective != other


def bounded(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """A share of the letters."""
    return [min(1.0, len(ids) / 4) for ids in completion_ids]


bounded.max_score = 1.0  # type: ignore[attr-defined]


def test_a_reward_may_bound_the_optimum() -> None:
    """By `max_score`, times its weight; unknown with a function without one, a negative weight, or shaping."""
    env = make(words(4, reward=bounded, kl_coef=1.0))
    assert exact.solve(env).objective < estimate_optimum(env, 256).upper <= 1.0
    assert largest_reward(make(words(4, reward=[bounded, bounded], reward_weights=[2.0, 0.5])).unwrapped.mdp) == 2.5
    unknown: list[dict[str, Any]] = [
        {"reward": letter_values},
        {"reward": [bounded, letter_values]},
        {"reward": bounded, "reward_weights": [-1.0]},
        {"reward": bounded, "shaping": [length_penalty(0.1)]},
    ]
    assert [largest_reward(make(words(4, **each)).unwrapped.mdp) for each in unknown] == [None] * 4


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        ([[1.0, 2.0]], {"kl_coef": 0.0}, "kl_coef must be > 0 to estimate the optimum, got 0"),
        ([[1.0, 2.0]], {"kl_coef": -1.0}, "kl_coef"),
        ([1.0, 2.0], {}, r"scores must be \[P, N\], .*, got shape \(2,\)"),
        ([[1.0]], {}, r"got shape \(1, 1\)"),
        (np.zeros((0, 4)), {}, r"got shape \(0, 4\)"),
        ([[1.0, np.inf]], {}, "scores must be finite"),
        ([[1.0, np.nan]], {}, "two completions with a score"),
        ("abc", {}, r"scores must be numbers \[P, N\], got 'abc'"),
        ([[1.0, 2.0]], {"max_score": 1.5}, "max_score must be at least every reward, got 1.5 and 2.0"),
        ([[1.0, 2.0]], {"confidence": 1.0}, "confidence must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(scores: Any, settings: dict[str, Any], message: str) -> None:
    """In a sentence."""
    with pytest.raises(ValueError, match=message):
        optimum_from_scores(scores, **({"kl_coef": 0.5} | settings))


def test_beta_0_is_refused_before_anything_is_sampled() -> None:
    """And a number of completions that is none."""
    with pytest.raises(ValueError, match="kl_coef must be > 0"):
        estimate_optimum(toy(0.0), 10**7)
    for number in (1, 0, 2.5, "3"):
        with pytest.raises(ValueError, match="num_completions must be a whole number, at least 2"):
            estimate_optimum(toy(0.5), number)  # type: ignore[arg-type]
