"""Stable-Baselines3's agents stop when they diverge, leave out steps that are not finite, and warn as ours do."""

from __future__ import annotations

import math
import warnings
from dataclasses import fields
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import RANGES, Diverged, TrainingWarning
from agents.training import MOST_SKIPPED, find_losses
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO
from experiments.update_callback import EndedCompletion, common_metrics
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, words
from textenv.rewards import RewardError

AGENTS = [SB3PPO, SB3A2C, SB3MaskablePPO]
every_agent = pytest.mark.parametrize("kind", AGENTS, ids=lambda kind: kind.__name__)
ABSURD: list[Any] = [
    math.inf, -math.inf, math.nan, 1e308, 10**30, -1, True, "3", None, [], 1j, np.float32(np.inf), np.array([1, 2]),
]  # fmt: skip


def toy(**arguments: Any) -> Any:
    """A toy with 14 completions."""
    return gym.make_vec("textenv/Toy-v0", **({"vocab_size": 3, "max_new_tokens": 2, "num_prompts": 2} | arguments))


def agent_of(kind: Any, env: Any = None, **settings: Any) -> Any:
    """An agent on a toy, with few tokens per update."""
    env = toy() if env is None else env
    return kind(random_policy(env, scale=0.1).float(), env, **({"n_episodes": 8, "n_steps": 4, "seed": 0} | settings))


def learn(agent: Any, updates: int) -> tuple[list[str], list[dict[str, float]]]:
    """The names of the warnings, and the metrics."""
    rows: list[dict[str, float]] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent.learn(10**7, lambda agent, rollout, metrics: rows.append(metrics) or len(rows) < updates)
    names = [str(each.message).split(": ")[0] for each in caught if each.category is TrainingWarning]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert sorted(names) == sorted(name[9:] for row in rows for name in row if name.startswith("warnings/"))
    return names, rows


def break_gradients(agent: Any, broken: Any) -> list[list[torch.Tensor]]:
    """Makes one number of the gradient nan where `broken(index of the step)`; returns the weights after each step."""
    weights, after = [p for p in agent.policy.parameters() if p.requires_grad], list[list[torch.Tensor]]()

    def spoil(optimizer: Any, *_: Any) -> None:
        if broken(len(after)):
            next(p for p in weights if p.grad is not None).grad.view(-1)[0] = math.nan

    optimizer = agent.algorithm.policy.optimizer
    hooks = optimizer._optimizer_step_pre_hooks
    filter_hooks = dict(hooks)
    hooks.clear()
    optimizer.register_step_pre_hook(spoil)
    hooks.update(filter_hooks)  # the filter comes after
    optimizer.register_step_post_hook(lambda *_: after.append([weight.detach().clone() for weight in weights]))
    return after


@every_agent
def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_training(kind: Any) -> None:
    """The weights stay those of the last good step; the error has the update and what to lower."""
    agent = agent_of(kind)
    after = break_gradients(agent, lambda index: index >= 2)
    with pytest.raises(
        Diverged, match=r"in update \d+: loss or gradient of 5 updates .* -> .*learning_rate \(0.0003\)"
    ):
        learn(agent, 20)
    assert agent.num_updates + 1 >= MOST_SKIPPED
    assert not all(map(torch.equal, after[0], after[1]))
    assert all(torch.equal(*pair) for later in after[2:] for pair in zip(after[1], later, strict=True))


@every_agent
def test_a_single_bad_step_is_left_out_and_counted(kind: Any) -> None:
    """All other steps are taken; it is warned about."""
    agent = agent_of(kind)
    after = break_gradients(agent, lambda index: index == 1)
    names, rows = learn(agent, 6)
    assert [row["train/skipped_steps"] for row in rows].count(1.0) == 1 and names == ["skipped_steps"]
    same = [all(map(torch.equal, *pair)) for pair in pairwise(after)]
    assert same[0] and not any(same[1:])


@every_agent
def test_the_table_has_the_losses_of_stable_baselines(kind: Any) -> None:
    """And no other of its metrics; a version with other names is found here."""
    agent = agent_of(kind)
    _, rows = learn(agent, 2)
    names = {name for row in rows for name in row if name.startswith("train/")}
    assert set(find_losses(rows[-1])) == {name for name in names if name.endswith("loss")} != names
    assert {"train/value_loss", "train/entropy_loss"} < set(find_losses(rows[-1]))


@every_agent
def test_an_absurd_learning_rate_ends_training(kind: Any) -> None:
    """Not with an error of torch's; also where the probabilities are nan within an update."""
    with pytest.raises(Diverged, match=r"has diverged in update 1.*learning_rate \(1e\+12\)"):
        agent_of(kind, learning_rate=1e12).learn(1000)


@every_agent
def test_scores_that_are_too_large_end_training(kind: Any) -> None:
    """The value loss is infinite and its gradient scaled to zero. The error shows the completion."""

    def huge(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [1e20 * len(completion) for completion in completions]

    env = make(words(4, reward=huge))
    with pytest.raises(
        Diverged, match=r"value_loss inf.*Largest \|score\|: \de\+20, of '.*' -> '.*Scale the scores down"
    ):
        learn(agent_of(kind, env), 20)


@every_agent
def test_training_that_has_collapsed_warns(kind: Any) -> None:
    """A learning rate of 10; control: an ordinary one."""
    env = toy(max_new_tokens=3, vocab_size=4)
    assert "entropy_gone" in learn(agent_of(kind, env, learning_rate=10.0, n_episodes=16), 12)[0]
    assert learn(agent_of(kind, env, learning_rate=1e-3, n_episodes=16), 12)[0] == []


@every_agent
def test_weights_that_do_not_move_and_equal_scores_warn(kind: Any) -> None:
    """As in our agents."""

    def constant(prompts: Any, **_: Any) -> list[float]:
        return [0.5] * len(prompts)

    names, _ = learn(agent_of(kind, make(words(4, reward=constant)), learning_rate=0.0), 12)
    assert set(names) == {"nothing_moves", "equal_scores"}


@every_agent
def test_a_reward_that_logs_the_name_of_a_metric_is_refused_before_a_step(kind: Any) -> None:
    """The weights are those of the start. Control: another name is among the metrics."""
    names = ["train/loss", "mine"]

    def reward(prompts: Any, log_metric: Any, **_: Any) -> list[float]:
        log_metric(names[0], 1.0)
        return [0.5] * len(prompts)

    agent = agent_of(kind, make(words(4, reward=reward)))
    before = [weight.clone() for weight in agent.policy.parameters()]
    with pytest.raises(RewardError, match="log_metric's name 'train/loss' is one of the agents' metrics"):
        learn(agent, 1)
    assert all(map(torch.equal, before, agent.policy.parameters()))
    names.pop(0)
    assert learn(agent, 1)[1][0]["mine"] == 1.0


def test_metrics_have_the_names_of_our_agents() -> None:
    """Entropy of a completion instead of a token, explained variance, share of cut completions, standard error."""
    finished = [EndedCompletion("a", "b", 1.0, "stop", 2.0), EndedCompletion("a", "c", 3.0, "length", 4.0)]
    metrics = {"train/entropy_loss": -0.5, "train/explained_variance": 0.3, "train/skipped_steps": 0.0}
    found = common_metrics(metrics, finished, tokens=8)
    assert found["objective/entropy"] == 2.0 and found["val/explained_variance"] == 0.3
    assert found["completions/clipped_ratio"] == 0.5 and found["objective/gold_scores"] == 3.0
    assert found["objective/rlhf_reward_stderr"] == pytest.approx(1.0) and found["groups/equal_scores_ratio"] == 0.0
    assert "objective/entropy" not in common_metrics(metrics, [], tokens=8)


@every_agent
def test_an_absurd_setting_is_refused_by_name_or_trains(kind: Any) -> None:
    """Every field, with every value; control: the defaults are accepted."""
    for field in fields(kind):
        if field.name in ("initial_policy", "env"):
            continue
        assert field.name in RANGES or field.name == "normalize_advantage"
        refused = 0
        for value in ABSURD:
            try:
                agent = agent_of(kind, **{field.name: value})
            except ValueError as error:
                assert field.name in str(error), f"{value!r}: {error}"
                refused += 1
                continue
            agent.learn(1, lambda agent, rollout, metrics: all(map(math.isfinite, metrics.values())))
        assert refused >= 10, field.name


def test_whitening_needs_two_tokens() -> None:
    """Stable-Baselines3 has an assertion instead."""
    with pytest.raises(ValueError, match="normalize_advantage needs at least two tokens"):
        agent_of(SB3PPO, batch_size=1, normalize_advantage=True)
    with pytest.raises(ValueError, match=r"seed must be in \[0, 4294967295\], got 4294967296"):
        agent_of(SB3A2C, seed=2**32)
