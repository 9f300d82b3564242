"""Is there something to learn from: on data whose components of variance, noise and distribution are known."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.helpers.tasks import mdp
from textenv import exact
from textenv.exact import optimum_from_scores
from textenv.reward_check import Finding, Table
from textenv.reward_check.samples import Samples, draw_samples
from textenv.reward_check.signal import check_missing, check_signal
from textenv.shaping import length_penalty


@pytest.fixture
def rng() -> np.random.Generator:
    """The same draws in each test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def samples() -> Samples:
    """64 completions of each of 16 prompts."""
    return draw_samples(mdp(prompts=[f"{'a ' * n}b" for n in range(16)], max_prompt_length=20), 64, 16, seed=0)


def signal(samples: Samples, scores: Any, noise: float = 0.0) -> tuple[dict[str, Finding], dict[str, Table]]:
    """The findings by name and the tables by title; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, tables = check_signal(samples, np.asarray(scores, dtype=np.float64).ravel(), noise)
    return {each.name: each for each in found}, {each.title: each for each in tables}


def verdicts(found: dict[str, Finding]) -> dict[str, str]:
    """The findings that do not hold."""
    return {name: each.verdict for name, each in found.items() if each.verdict != "holds"}


def test_nothing_is_found_in_scores_of_a_normal_distribution(samples: Samples, rng: np.random.Generator) -> None:
    """Control of the tests below, at a beta that 64 completions can do."""
    assert verdicts(signal(samples, rng.normal(size=(16, 64)) * 0.4)[0]) == {}


@pytest.mark.parametrize(("between", "within"), [(3.0, 1.0), (0.0, 1.0), (0.1, 2.0), (30.0, 0.1)])
def test_components_of_variance(samples: Samples, rng: np.random.Generator, between: float, within: float) -> None:
    """Standard deviations between and within prompts that are known."""
    scores = between * rng.normal(size=(16, 1)) + within * rng.normal(size=(16, 64))
    found = signal(samples, scores)[0]["variance"]
    share = float(found.text.split("%")[0]) / 100
    drawn = np.var(scores.mean(axis=1), ddof=1) - within**2 / 64
    assert share == pytest.approx(max(drawn, 0) / (max(drawn, 0) + within**2), abs=0.02)
    assert found.verdict == ("look here" if share > 0.9 else "holds")


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e8])
def test_constant_scores_are_broken(samples: Samples, value: float) -> None:
    """Of all completions, or of those of each prompt: also where the mean of equal numbers is rounded."""
    found, tables = signal(samples, np.full((16, 64), value))
    assert verdicts(found) == {"spread": "broken"} and list(found) == ["spread"] and not tables
    assert "every completion has the score" in found["spread"].text
    found, _ = signal(samples, np.arange(16)[:, None] * np.full(64, 0.1) + value)
    assert verdicts(found) == {"spread": "broken"} and "depends on the prompt alone" in found["spread"].text


def test_noise_is_a_share_of_the_variance_within_prompts(samples: Samples, rng: np.random.Generator) -> None:
    """Standard deviations 0.4 of the scores and 0.2 of the noise."""
    scores = 0.4 * rng.normal(size=(16, 64))
    noisy = signal(samples, scores, noise=0.2)[0]["noise"]
    assert noisy.verdict == "look here" and float(noisy.text.split("%")[0]) == pytest.approx(25, abs=2)
    assert signal(samples, scores, noise=0.02)[0]["noise"].verdict == "holds"
    assert signal(samples, scores, noise=100.0)[0]["noise"].text.startswith("100.0%")


def test_binary_scores_are_tied_and_not_saturated(samples: Samples, rng: np.random.Generator) -> None:
    """A class is no saturation; a number with a bound that many reach is."""
    binary = (rng.random((16, 64)) < 0.6).astype(float)
    found, _ = signal(samples, binary)
    assert found["ties"].verdict == "look here" and found["saturation"].verdict == "holds"
    bounded = np.minimum(rng.normal(size=(16, 64)), 0.0)
    found, _ = signal(samples, bounded)
    assert found["saturation"].verdict == "look here" and found["saturation"].example
    assert float(found["saturation"].text.split("%")[0]) == pytest.approx(50, abs=4)


def test_groups_of_equal_scores(samples: Samples) -> None:
    """One completion of 64 scores: hardly any group has it. Control: half of them do."""
    rare = np.zeros((16, 64))
    rare[:, 0] = 1.0
    found = signal(samples, rare)[0]["groups"]
    assert found.verdict == "look here"
    assert f"{1 - 8 / 64:.0%} of 8 completions" in found.text
    assert signal(samples, np.arange(64) % 2 * np.ones((16, 1)))[0]["groups"].verdict == "holds"


def test_outliers_are_named(samples: Samples, rng: np.random.Generator) -> None:
    """Far from the median, in either direction; none in a distribution of few values."""
    scores = 0.4 * rng.normal(size=(16, 64))
    scores[3, 5] = -50.0
    found = signal(samples, scores)[0]["outliers"]
    assert found.verdict == "look here" and found.text.startswith("1 completion") and "has -50" in found.example
    assert signal(samples, (rng.random((16, 64)) < 0.02).astype(float))[0]["outliers"].verdict == "holds"


def test_outliers_of_sparse_rewards_are_named(samples: Samples, rng: np.random.Generator) -> None:
    """A million among zeros and ones, whose median deviation is 0. Control: without it, above."""
    scores = (rng.random((16, 64)) < 0.05).astype(float)
    scores[3, 5] = 1e6
    found = signal(samples, scores)[0]["outliers"]
    assert found.verdict == "look here" and found.text.startswith("1 completion") and "has 1e+06" in found.example


def test_outliers_are_those_within_a_prompt(samples: Samples, rng: np.random.Generator) -> None:
    """What one prompt has in general is none; what is far from it is one, although other prompts have it."""
    scores = 0.4 * rng.normal(size=(16, 64)) + 1000.0 * (np.arange(16) == 2)[:, None]
    assert signal(samples, scores)[0]["outliers"].verdict == "holds"
    scores[2, 7] = 0.0
    found = signal(samples, scores)[0]["outliers"]
    assert found.verdict == "look here" and "has 0" in found.example and "the prompt, 1e+03" in found.text


def test_components_of_variance_with_unequal_numbers_of_scores(samples: Samples) -> None:
    """Of 2 and of 64 completions a prompt, whose means differ by chance alone: no variance is the prompt's."""
    shares = []
    for seed in range(40):
        scores = np.random.default_rng(seed).normal(size=(16, 64))
        scores[::2, 2:] = np.nan
        shares.append(float(signal(samples, scores)[0]["variance"].text.split("%")[0]))
    assert np.median(shares) < 5


def test_completions_without_a_score(
    samples: Samples, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some completions, of all of a prompt, of all: broken where nothing skips them, as a training then stops."""
    scores = rng.normal(size=(16, 64))
    assert check_missing(samples, scores.ravel()).verdict == "holds"
    scores[2, :16] = np.nan
    assert check_missing(samples, scores.ravel()).verdict == "broken"
    monkeypatch.setattr(samples.mdp.reward, "on_error", "skip")
    found = check_missing(samples, scores.ravel())
    assert found.verdict == "look here" and found.text.startswith("1.6%") and "prompts have" not in found.text
    scores[3, 1:] = np.nan
    assert "1 of 16 prompts have fewer than two" in check_missing(samples, scores.ravel()).text
    scores[:, 1:] = np.nan
    assert check_missing(samples, scores.ravel()).verdict == "broken"


def test_some_scores_may_be_missing(samples: Samples, rng: np.random.Generator) -> None:
    """The rest is computed of those that there are, without a warning."""
    scores = 0.4 * rng.normal(size=(16, 64))
    missing = np.where(rng.random((16, 64)) < 0.3, np.nan, scores)
    found, tables = signal(samples, missing)
    assert verdicts(found) == {} and tables["best of n completions"].rows[0][1] == pytest.approx(
        np.mean([np.nanmean(row) for row in missing])
    )


def test_the_optimum_is_that_of_the_scores_with_shaping() -> None:
    """By `optimum_from_scores`, and beside the exact J* of the toy. Control: without shaping it is another."""
    task = mdp(kl_coef=1.0, shaping=[length_penalty(0.25)])
    samples = draw_samples(task, 4000, 4, seed=0)
    scores = task.score(samples.finished)
    found, tables = signal(samples, scores)
    rows = {row[0]: row for row in tables["the optimum at several beta"].rows}
    grid = samples.by_prompt(scores + samples.shaping)
    assert rows[1.0][1] == pytest.approx(optimum_from_scores(grid, 1.0).objective)
    assert rows[1.0][1] == pytest.approx(exact.solve(task).objective, abs=5 * rows[1.0][2])
    assert abs(rows[1.0][1] - exact.solve(mdp(kl_coef=1.0)).objective) > 5 * rows[1.0][2]  # control
    assert [row[1] for row in rows.values()] == sorted((row[1] for row in rows.values()), reverse=True)
    assert found["optimum"].text.startswith(f"J* = {rows[1.0][1]:.3g} ")


def test_an_optimum_that_cannot_be_estimated_or_is_the_reference(samples: Samples, rng: np.random.Generator) -> None:
    """One effective completion; scores that are tiny beside beta; beta = 0."""
    scores = rng.normal(size=(16, 64))
    assert "effective completions" in signal(samples, 100 * scores)[0]["optimum"].text
    assert "nearly the reference" in signal(samples, 1e-6 * scores)[0]["optimum"].text
    found, tables = signal(draw_samples(mdp(kl_coef=0.0), 16, 4, seed=0), scores[:4, :16])
    assert found["optimum"].verdict == "look here" and "the optimum at several beta" not in tables
