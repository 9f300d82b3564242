"""The numbers of a trial, in metrics.jsonl and summary.json, from every completion of the task and from a clock."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect
from experiments import evaluation, trial_log
from experiments.baselines import best_of_n, sample_reference
from experiments.evaluation import Evaluator
from experiments.metrics_file import read_metrics
from experiments.trial import run_trial
from experiments.trial_log import TrialLog
from tests.helpers.brute_force import Completion, all_completions, optimum
from tests.helpers.commands import tiny
from tests.helpers.policies import random_policy
from tests.helpers.tasks import log_softmax, make, random_reference, words

Steps = dict[Completion, list[tuple[float, float]]]


def by_enumeration(env: Any, completions: Steps, policy: TransformerPolicy | None) -> dict[str, float]:
    """J, E[score] and the KL, summed over every completion; of the reference if there is no policy."""
    beta, found = env.unwrapped.mdp.kl_coef, {"objective": 0.0, "score": 0.0, "kl": 0.0}
    for (prompt, tokens), steps in completions.items():
        ref, log_prob = sum(log_ref for _, log_ref in steps), 0.0
        score = sum(reward for reward, _ in steps) - beta * ref
        for t, token in enumerate(tokens):
            observation, info = env.reset(options={"prompt": prompt, "completion": list(tokens[:t])})
            if policy is None:
                log_prob += steps[t][1]
                continue
            with torch.no_grad():
                logits = policy.next_token_logits(*(x[None] for x in observation.values()))[0].double().numpy()
            log_prob += log_softmax(logits, info["action_mask"] == 1)[token]
        weight = np.exp(log_prob) / len(env.unwrapped.prompts)
        found["score"] += weight * score
        found["kl"] += weight * (log_prob - ref)
        found["objective"] += weight * (score - beta * (log_prob - ref))
    return found


def test_the_numbers_of_a_trial_are_their_definitions(
    tmp_path: Path, initial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations, baselines and optimum by enumeration; share of the way, tokens to 90% and tokens a second by hand.

    The clock advances by a second in an update, and by more in evaluations and checkpoints, which do not count.
    """
    clock, known = SimpleNamespace(now=0.0), list[dict[str, float]]()
    measure, train, checkpoint = Evaluator.measure, PPO.train, TrialLog.checkpoint

    def measured(self: Evaluator, policy: TransformerPolicy, *exact: Any) -> dict[str, float]:
        clock.now += 100.0
        known.append(by_enumeration(env, completions, policy))
        return measure(self, policy, *exact)

    def trained(self: PPO, rollout: Rollout) -> dict[str, float]:
        clock.now += 1.0
        return train(self, rollout)

    def saved(self: TrialLog, *arguments: Any) -> None:
        checkpoint(self, *arguments)
        clock.now += 1000.0

    config = tiny(learning_rate=0.01, num_evals=6)
    env = gym.make(config.env, **config.env_args)
    completions = all_completions(env)
    monkeypatch.setattr(Evaluator, "measure", measured)
    monkeypatch.setattr(PPO, "train", trained)
    monkeypatch.setattr(TrialLog, "checkpoint", saved)
    monkeypatch.setattr(trial_log, "time", SimpleNamespace(**(vars(time) | {"monotonic": lambda: clock.now})))
    run_trial(config, tmp_path, initial)
    summary, rows = json.loads((tmp_path / "summary.json").read_text()), read_metrics(tmp_path)

    evaluated = [row for row in rows if "eval/objective" in row]
    assert len(evaluated) == 7 and len(known) == 8
    for row, expected in zip(evaluated, known, strict=False):
        found = {name: row[f"eval/{name}"] for name in expected}
        assert found == pytest.approx(expected, abs=1e-5)
    assert {name: summary[name] for name in known[-1]} == pytest.approx(known[-1], abs=1e-5)

    reference = by_enumeration(env, completions, None)
    best = optimum(completions, env.unwrapped.mdp.kl_coef)[0]
    assert summary["baselines"]["reference"] == pytest.approx(reference["objective"], abs=1e-6)
    assert summary["baselines"]["reference_score"] == pytest.approx(reference["score"], abs=1e-6)
    assert summary["baselines"]["reference_gold_score"] is None
    assert summary["baselines"]["optimum"] == pytest.approx(best, abs=1e-6)
    shares = [(each["objective"] - reference["objective"]) / (best - reference["objective"]) for each in known]
    assert summary["normalized_objective"] == pytest.approx(shares[-1], abs=1e-4)
    after = next(i for i, share in enumerate(shares) if share >= 0.9)
    assert after > 0  # tokens at 90%, on the line between the evaluations before and after
    tokens = [row["num_timesteps"] for row in evaluated]
    part = (0.9 - shares[after - 1]) / (shares[after] - shares[after - 1])
    assert summary["tokens_to_90"] == pytest.approx(
        tokens[after - 1] + part * (tokens[after] - tokens[after - 1]), 1e-3
    )

    updates = rows[1:]
    sampled = np.cumsum([round(16 * row["completions/mean_length"]) for row in updates])
    assert [row["num_timesteps"] for row in rows] == [0, *sampled]
    assert [row["num_updates"] for row in rows] == [row["seconds"] for row in rows] == list(range(len(rows)))
    assert summary["num_timesteps"] == sampled[-1] and summary["num_updates"] == summary["seconds"] == len(updates)
    assert summary["tokens_per_second"] == pytest.approx(sampled[-1] / len(updates))
    assert (summary["agent"], summary["seed"]) == ("ppo", 0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Rollout]:
    """The rollouts that evaluations and baselines collect."""
    found: list[Rollout] = []

    def keep(*arguments: Any, **settings: Any) -> Rollout:
        found.append(collect(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(evaluation, "collect", keep)
    return found


def sampled_task() -> Any:
    """A task with masks, with rewards that depend on prompt and tokens."""
    return make(words(4, reference=random_reference(4, 7, sparse=True), max_new_tokens=4))


def test_an_estimate_is_a_mean_with_its_standard_error(kept: list[Rollout]) -> None:
    """Over all completions, equally many of each prompt: the mean, and the spread within prompts."""
    env = sampled_task()
    found = Evaluator(env, 99, None).measure(random_policy(env).float())
    assert [len(each) for each in kept] == [64, 36]  # at least 99
    names = ("objective", "score", "kl")
    columns: dict[str, dict[int, list[float]]] = {name: {0: [], 1: [], 2: [], 3: []} for name in names}
    for rollout in kept:
        for i, prompt in enumerate(rollout.prompt.tolist()):
            kl = sum(float(rollout.log_probs[i, t] - rollout.ref_log_probs[i, t]) for t in range(rollout.num_tokens))
            score = float(rollout.scores[i])
            for name, value in zip(names, (score - 0.5 * kl, score, kl), strict=True):
                columns[name][prompt].append(value)
    expected = {}
    for name, of_prompts in columns.items():
        assert [len(values) for values in of_prompts.values()] == [25] * 4
        means = [sum(values) / 25 for values in of_prompts.values()]
        variances = [sum((x - m) ** 2 for x in v) / 24 for v, m in zip(of_prompts.values(), means, strict=True)]
        expected[name] = sum(means) / 4
        expected[f"{name}_stderr"] = (sum(variance / 25 for variance in variances)) ** 0.5 / 4
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    values = [x for each in columns["score"].values() for x in each]  # control: the spread over all is larger
    assert np.std(values, ddof=1) / 10 > 1.05 * expected["score_stderr"]


def test_the_sampled_best_of_n_keeps_the_best_of_every_group() -> None:
    """Of all groups of n among the completions of a prompt, the one with the largest r; the KL is its bound."""
    env = sampled_task()
    evaluator = Evaluator(env, 4, None)
    completions = sample_reference(evaluator, 7)
    assert completions.rewards.shape == (4, 7) and len(np.unique(completions.scores)) > 7
    for n in (1, 3, 7):
        found = best_of_n(evaluator, n, completions)
        best = [
            max((row["reward"], row["score"]) for row in group)[1]
            for rewards, scores in zip(completions.rewards, completions.scores, strict=True)
            for group in itertools.combinations(
                [{"reward": r, "score": score} for r, score in zip(rewards, scores, strict=True)], n
            )
        ]
        kl = np.log(n) - (n - 1) / n
        expected = {"score": np.mean(best), "kl": kl, "objective": np.mean(best) - 0.5 * kl}
        assert found == pytest.approx(expected, abs=1e-4)
    assert best_of_n(evaluator, 3, completions)["score"] > completions.scores.mean() + 0.1  # control
