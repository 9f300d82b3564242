"""Claims 5 and 6: old samples and the clip."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from agents import PPO, TrainingWarning
from agents.functional import clipped_surrogate_loss, surrogate_diagnostics
from agents.verification import Enumeration, random_log_probs
from experiments.evaluation import Evaluator
from experiments.lecture import old_samples
from tests.helpers.lecture import all_completions
from tests.helpers.policies import random_policy
from textenv import exact


def reuse(completions: Enumeration, clip_range: float | None, epochs: int) -> tuple[dict[str, Tensor], float]:
    """Takes `epochs` gradient steps of PPO's loss on a table, over all completions of the old policy.

    Returns:
        The metrics of the last loss, and J.
    """
    old = torch.tensor(completions.evaluation.log_probs)
    logits = old.clone().requires_grad_(True)
    count = len(completions.probability)  # the loss is a mean over completions: weight each by its probability
    advantages = completions.look_up(completions.evaluation.advantages) * completions.probability[:, None] * count
    for _ in range(epochs + 1):
        log_probs = logits.log_softmax(dim=1)
        new, before = completions.look_up(log_probs), completions.look_up(old)
        loss = clipped_surrogate_loss(new, before, advantages, completions.mask, clip_range)
        info = surrogate_diagnostics(new, before, advantages, completions.mask, clip_range)
        (slope,) = torch.autograd.grad(loss, logits)
        after = exact.evaluate_log_probs(completions.tree, log_probs.detach().numpy()).objective
        logits = (logits - 10 * slope).detach().requires_grad_(True)
    return info, after


@pytest.mark.parametrize("seed", range(3))
def test_without_the_clip_more_epochs_degrade_old_samples(seed: int) -> None:
    """More epochs make the ratios larger and the effective sample smaller; the clip bounds both, and keeps J higher."""
    completions = all_completions(seed)
    (few, _), (many, ruined), (held, kept) = (
        reuse(completions, None, 5),
        reuse(completions, None, 200),
        reuse(completions, 0.2, 200),
    )
    assert held["val/ratio_error_max"] < many["val/ratio_error_max"] > few["val/ratio_error_max"]
    assert held["val/ess"] > many["val/ess"] < few["val/ess"]
    assert kept > completions.evaluation.objective and kept > ruined


@pytest.mark.parametrize("seed", range(3))
def test_a_narrower_clip_binds_more_and_changes_the_policy_less(seed: int) -> None:
    """As eps grows, fewer tokens of a fixed policy are clipped, and training goes further from the old policy."""
    completions = all_completions(seed)
    distances = [float(reuse(completions, eps, 50)[0]["policy/approxkl_avg"]) for eps in (0.02, 0.1, 0.5, None)]
    assert distances == sorted(distances) and distances[0] < distances[-1]
    other = torch.as_tensor(random_log_probs(completions.tree, np.random.default_rng(seed + 100)))
    for side in ("high", "low"):
        shares = [
            float(
                surrogate_diagnostics(
                    completions.look_up(other),
                    completions.look_up(completions.evaluation.log_probs),
                    completions.look_up(completions.evaluation.advantages),
                    completions.mask,
                    eps,
                )[f"policy/clipfrac_{side}_avg"]
            )
            for eps in (0.02, 0.2, 0.5, 0.9, None)
        ]
        assert shares == sorted(shares, reverse=True) and shares[0] > 0 == shares[-1]


def test_the_claim_provokes_warnings_and_silences_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty epochs without a clip: no warning from `run`; control: the same agent outside warns."""
    monkeypatch.setattr(old_samples, "TIMESTEPS", 2500)
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=1)
    evaluator, start = Evaluator.for_env(env, episodes=2), random_policy(env, scale=0.1).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        old_samples.run(evaluator, start, seed=0, n_epochs=40, clip_range=None)
    with pytest.warns(TrainingWarning):
        PPO(start, env, learning_rate=1e-3, seed=0, n_epochs=40, clip_range=None).learn(2500)


def test_collapse_is_counted_with_its_interval() -> None:
    """Runs below the threshold are counted; Wilson's interval contains their share."""
    runs = [{"share": share} for share in (-0.5, 0.1, 0.24, 0.26, 0.9)]
    count, low, high = old_samples.collapsed(runs)
    assert count == 3 and 0 < low < 3 / 5 < high < 1


def test_ppo_is_run_with_the_clip_it_is_metrics_to_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a clip nothing is clipped; ratios stay at 1 in one epoch and grow in twenty."""
    monkeypatch.setattr(old_samples, "TIMESTEPS", 600)
    metrics: list[dict[str, float]] = []
    train = PPO.train

    def watched(self: PPO, rollout: Any) -> dict[str, float]:
        metrics.append(train(self, rollout))
        return metrics[-1]

    monkeypatch.setattr(PPO, "train", watched)
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    evaluator, start = Evaluator.for_env(env, 2), random_policy(env).float()
    no_clip, clip = (old_samples.CLIPS[name] for name in ("no clip", "clip 0.2"))
    once = old_samples.run(evaluator, start, 0, n_epochs=1, clip_range=no_clip)
    free = old_samples.run(evaluator, start, 0, n_epochs=20, clip_range=no_clip)
    metrics.clear()
    held = old_samples.run(evaluator, start, 0, n_epochs=20, clip_range=clip)
    assert once["largest_ratio"] == pytest.approx(1, abs=1e-4) and once["ess"] == pytest.approx(1, abs=1e-4)
    assert free["largest_ratio"] > 1.2 and free["clipped_high"] == free["clipped_low"] == 0
    assert held["clipped_high"] > 0 and held["clipped_low"] > 0 and 0 < free["ess"] < 1
    assert held["clipped_high"] == pytest.approx(np.mean([row["policy/clipfrac_high_avg"] for row in metrics]))
    assert held["clipped_low"] == pytest.approx(np.mean([row["policy/clipfrac_low_avg"] for row in metrics]))
    assert held["ess"] == min(row["val/ess"] for row in metrics)
    assert held["largest_ratio"] == 1 + max(row["val/ratio_error_max"] for row in metrics)
    again = old_samples.over_seeds(evaluator, start, (0,), n_epochs=1, clip_range=None)
    assert again["runs"] == [once] and again["share"]["value"] == pytest.approx(once["share"])
