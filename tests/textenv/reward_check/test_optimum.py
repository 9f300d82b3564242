"""What the optimum has more of: beside the exact pi* of toys over enumerated completions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import mdp
from textenv import exact
from textenv.exact import MIN_EFFECTIVE_SAMPLES
from textenv.reward_check.optimum import estimable_beta, largest_gain, shift, weights_of_optimum
from textenv.reward_check.samples import Samples, draw_samples
from textenv.shaping import length_penalty


def toy(beta: float = 0.5, **arguments: Any) -> Any:
    """A toy with enough completions of its own."""
    return gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, num_prompts=3, kl_coef=beta, **arguments)


def effective(samples: Samples, weights: np.ndarray) -> np.ndarray:
    """Effective completions of each prompt."""
    return 1 / (samples.by_prompt(weights) ** 2).sum(axis=1)


@pytest.mark.parametrize("shaping", [[], [length_penalty(0.5)]], ids=["score", "shaped"])
def test_the_shift_is_that_of_the_exact_optimum(shaping: list[Any]) -> None:
    """Of the length and of a letter, within 4 standard errors. Control: the reference's mean is far from it."""
    env = toy(shaping=shaping)
    solution, task = exact.solve(env), env.unwrapped.mdp
    state, action = solution.tree.leaves()
    probabilities = np.exp(solution.log_probs) / 3
    tokens = [
        [int(t) for t in solution.tree.tokens[s] if t >= 0] + [int(a)] for s, a in zip(state, action, strict=True)
    ]
    samples = draw_samples(task, 4000, 3, seed=0)
    scores = np.asarray(task.score(samples.finished))
    weights = weights_of_optimum(samples, scores, 0.5)
    far = []
    for feature in (len, lambda ids: ids.count(1), lambda ids: ids.count(2)):
        values = np.array([float(feature(ids)) for ids in samples.finished.completion_ids])
        before, under, stderr = shift(samples, values, weights)
        expected = float(probabilities @ [feature(ids) for ids in tokens])
        assert before == pytest.approx(values.mean()) and under == pytest.approx(expected, abs=4 * stderr)
        far.append(abs(before - expected) > 6 * stderr)
    assert any(far)  # control


def test_the_standard_error_is_that_of_repetitions() -> None:
    """The standard deviation of the shift over 200 draws of 64 completions."""
    task, found = toy(1.0).unwrapped.mdp, []
    for seed in range(200):
        samples = draw_samples(task, 64, 3, seed)
        weights = weights_of_optimum(samples, np.asarray(task.score(samples.finished)), 1.0)
        found.append(shift(samples, samples.finished.length.astype(float), weights)[1:])
    under, stderr = np.array(found).T
    assert stderr.mean() == pytest.approx(under.std(), rel=0.2)


def test_one_effective_completion_is_no_certainty() -> None:
    """Its standard error is the reference's standard deviation, not 0."""
    samples = draw_samples(mdp(), 64, 4, seed=0)
    weights = np.zeros(256)
    weights[::64] = 1.0
    values = samples.finished.length.astype(float)
    grid = samples.by_prompt(values)
    assert shift(samples, values, weights)[2] == pytest.approx(np.sqrt(grid.var(axis=1).sum()) / 4)


def test_beta_is_the_smallest_that_can_be_estimated() -> None:
    """Each prompt has 10 effective completions, and with a smaller beta one has fewer; never below the task's."""
    samples = draw_samples(mdp(kl_coef=0.1), 64, 4, seed=0)
    scores = np.random.default_rng(0).normal(size=256)
    beta = estimable_beta(samples, scores)
    assert effective(samples, weights_of_optimum(samples, scores, beta)).min() >= MIN_EFFECTIVE_SAMPLES
    assert effective(samples, weights_of_optimum(samples, scores, 0.99 * beta)).min() < MIN_EFFECTIVE_SAMPLES
    assert estimable_beta(samples, scores / 1e3) == 0.1
    assert estimable_beta(samples, 1e6 * scores) == pytest.approx(1e6 * beta, rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_constant_prompt_and_few_completions_need_no_exception(beta: float) -> None:
    """Half of 8 completions; a prompt whose scores are all the same; completions without a score."""
    samples = draw_samples(mdp(kl_coef=beta), 8, 4, seed=0)
    scores = np.random.default_rng(0).normal(size=32)
    scores[:8], scores[9:14] = 1.0, np.nan
    found = estimable_beta(samples, scores)
    weights = weights_of_optimum(samples, scores, found)
    assert found > 0 and samples.by_prompt(weights).sum(axis=1) == pytest.approx(np.ones(4))
    assert not weights[9:14].any() and (effective(samples, weights) >= [4, 1.5, 4, 4]).all()
    best = samples.by_prompt(weights_of_optimum(samples, scores, 0.0))
    assert np.array_equal(best > 0, samples.by_prompt(scores) == np.nanmax(samples.by_prompt(scores), axis=1)[:, None])


@pytest.mark.parametrize("offset", [0.0, 1e5, -1e5])
def test_completions_without_a_score_do_not_set_the_scale(offset: float) -> None:
    """A score has no zero: one None beside scores with an offset leaves beta as it is."""
    samples = draw_samples(mdp(kl_coef=0.1), 64, 4, seed=0)
    scores = np.random.default_rng(0).normal(size=256)
    scores[3] = np.nan
    assert estimable_beta(samples, scores + offset) == pytest.approx(estimable_beta(samples, scores), rel=1e-3)


def test_both_means_are_over_prompts_and_the_completions_with_a_score() -> None:
    """With equal weights nothing is shifted, however unequal the prompts are in how many have a score."""
    samples = draw_samples(mdp(), 64, 4, seed=0)
    scores = np.random.default_rng(0).normal(size=256)
    values = 10.0 * samples.finished.prompt + scores
    scores[:60] = values[:60] = np.nan
    before, under, _ = shift(samples, values, weights_of_optimum(samples, scores, 1e6))
    assert before == pytest.approx(under, abs=1e-4)
    grid = samples.by_prompt(values)
    assert before == pytest.approx(np.nanmean(grid, axis=1).mean()) != pytest.approx(np.nanmean(grid))


def test_the_gain_is_that_of_the_objective() -> None:
    """sigma^2 / (2 beta) of a normal part; the largest minus the mean with beta = 0; nothing of a constant."""
    part = np.random.default_rng(0).normal(size=40_000)
    found = largest_gain(draw_samples(mdp(kl_coef=2.0), 10_000, 4, seed=0), part)
    assert found == pytest.approx(1 / (2 * 2.0), rel=0.05)
    samples = draw_samples(mdp(kl_coef=0.0), 8, 4, seed=0)
    grid = part[:32].reshape(4, 8)
    assert largest_gain(samples, part[:32]) == pytest.approx((grid.max(axis=1) - grid.mean(axis=1)).mean())
    assert largest_gain(samples, np.ones(32)) == 0.0
