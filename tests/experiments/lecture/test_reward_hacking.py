"""Claim 7: reward hacking and beta."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents import PPO
from agents.verification import random_log_probs
from experiments.lecture import reward_hacking
from tests.helpers.policies import random_policy
from textenv import exact


def test_the_frontier_bounds_every_policy_and_gold_has_a_peak() -> None:
    """As beta falls, KL and proxy rise; gold rises, then falls. No policy has a higher proxy score for its KL."""
    tree = exact.enumerate_tree(gym.make(reward_hacking.ID))
    points = [reward_hacking.optimum(tree, beta) for beta in reward_hacking.FRONTIER]
    for key in ("kl", "proxy"):
        values = [point[key] for point in points]
        assert values == sorted(values)
    gold = [point["gold"] for point in points]
    peak = int(np.argmax(gold))
    assert gold[: peak + 1] == sorted(gold[: peak + 1]) and gold[peak:] == sorted(gold[peak:], reverse=True)
    reference = exact.evaluate_log_probs(tree, tree.ref_log_probs)
    assert 0 < peak < len(gold) - 1 and gold[-1] < reference.gold_score < gold[peak]
    for seed, distance in enumerate((0.1, 0.5, 1.0, None)):
        evaluation = exact.evaluate_log_probs(tree, random_log_probs(tree, np.random.default_rng(seed), distance))
        for point, beta in zip(points, reward_hacking.FRONTIER, strict=True):
            assert evaluation.score - beta * evaluation.kl <= point["proxy"] - beta * point["kl"] + 1e-9
    best, last, beta = points[peak], points[-1], reward_hacking.FRONTIER[-1]  # control: not a frontier of gold
    assert best["gold"] - beta * best["kl"] > last["gold"] - beta * last["kl"]


def test_runs_use_the_beta_of_their_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run's environment has the beta of its row, and its trajectory ends at the final policy."""
    agents: list[Any] = []

    class Recorded(PPO):
        def __post_init__(self) -> None:
            super().__post_init__()
            agents.append(self)

    monkeypatch.setattr(reward_hacking, "PPO", Recorded)
    monkeypatch.setattr(reward_hacking, "TIMESTEPS", 500)
    start = random_policy(gym.make(reward_hacking.ID)).float()
    run = reward_hacking.train(start, 0, kl_coef=0.3)
    steered = reward_hacking.train(start, 0, **reward_hacking.TARGET)
    assert [agent.env.unwrapped.mdp.kl_coef for agent in agents] == [0.3, reward_hacking.TARGET["kl_coef"]]
    evaluation = exact.evaluate(gym.make(reward_hacking.ID), agents[0].policy)
    assert run["trajectory"][-1]["proxy"] == pytest.approx(evaluation.score)
    assert run["trajectory"][-1]["gold"] == pytest.approx(evaluation.gold_score)
    assert run["last_kl_coef"] is None and steered["last_kl_coef"] != reward_hacking.TARGET["kl_coef"]
    assert [completion["prompt"] for completion in run["completions"]] == agents[0].env.unwrapped.prompts
