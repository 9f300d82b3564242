"""What reward functions learn of the training, and what they log about it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import PPO, REINFORCE
from agents.sampling import Rollout, collect
from agents.training import reward_metrics
from agents.training.reward_log import OTHERS, OURS
from tests.helpers.policies import random_policy
from tests.helpers.ranks import run_on_two_ranks
from tests.helpers.tasks import logging_reward, make, words
from textenv.rewards import RewardError


def learn(
    reward: Any, total: int = 300, cls: Any = PPO, **settings: Any
) -> tuple[Any, list[Rollout], list[dict[str, float]]]:
    """An agent after some updates, with the rollouts and the metrics of each."""
    env = make(words(reward=reward, max_new_tokens=6))
    agent = cls(random_policy(env), env, **{"n_episodes": 16, "seed": 0} | settings)
    rollouts: list[Rollout] = []
    rows: list[dict[str, float]] = []

    def after(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> None:
        rollouts.append(rollout)
        rows.append(metrics)
        collect(env, agent.policy, 4)  # what an evaluation logs is not the update's

    agent.learn(total, callback=after)
    return agent, rollouts, rows


def test_what_is_logged_is_among_the_metrics() -> None:
    """The means of an update's calls; the columns are those of the rollout's completions, in any selection."""
    agent, rollouts, rows = learn(logging_reward)
    assert agent.num_updates == len(rows) > 2
    assert [row["step"] for row in rows] == list(range(len(rows)))
    for row, rollout in zip(rows, rollouts, strict=True):
        assert row["mean_tokens"] == pytest.approx(float(rollout.num_sampled) / len(rollout))
        assert rollout.extra is not None and set(rollout.extra) == {"capitals"}
        assert rollout.extra["capitals"].tolist() == [text.upper() for text in rollout.completions]
        assert rollout[3:5].extra["capitals"].tolist() == rollout.extra["capitals"].tolist()[3:5]  # type: ignore[index]
    assert "mean_tokens" not in learn(lambda prompts, **_: [1.0] * len(prompts))[2][0]  # control


def test_several_calls_of_an_update_are_averaged() -> None:
    """An agent that samples continuations calls the reward more than once an update."""
    calls: list[int] = []

    def reward(prompts: Any, log_metric: Any, **_: Any) -> list[float]:
        calls.append(len(prompts))
        log_metric("size", len(prompts))
        return [1.0] * len(prompts)

    _, _, rows = learn(reward, 1, REINFORCE, credit="q")
    assert len(calls) > 2 and rows[0]["size"] == pytest.approx(np.mean(calls[:-1]))  # the last is the evaluation's


def test_a_reward_follows_the_progress_of_the_training() -> None:
    """Updates, tokens, passes through the prompts, and an estimate of the number of updates that ends near it."""
    states: list[Any] = []

    def reward(prompts: Any, trainer_state: Any, **_: Any) -> list[float]:
        if len(prompts) == 16:
            states.append(trainer_state)
        return [1.0] * len(prompts)

    agent, rollouts, _ = learn(reward)
    tokens = np.cumsum([0, *(int(rollout.num_sampled) for rollout in rollouts)])[:-1]
    assert [state.global_step for state in states] == list(range(agent.num_updates))
    assert [state.num_input_tokens_seen for state in states] == tokens.tolist()
    prompts = len(agent.mdp.prompts.texts)
    assert [state.epoch for state in states] == [step * 16 / prompts for step in range(len(states))]
    assert all(state.train_batch_size == 16 and state.is_world_process_zero for state in states)
    assert states[0].max_steps == -(-300 // (16 * 6))
    assert states[-1].max_steps == pytest.approx(agent.num_updates, abs=1)


@pytest.mark.parametrize(
    "name", ["objective/kl", "num_timesteps", "seconds", "eval/objective", "policy/weight_change", "warnings/x"]
)
def test_the_names_of_other_metrics_are_refused(name: str) -> None:
    """A row of metrics has one number of each name. The error comes before the weights change."""

    def reward(prompts: Any, log_metric: Any, **_: Any) -> list[float]:
        log_metric(name, 1.0)
        return [1.0] * len(prompts)

    env = make(words(reward=reward))
    collect(env, random_policy(env), 4)  # control: without an agent every name is free
    agent = PPO(random_policy(env), env, n_episodes=16, seed=0)
    before = [weight.clone() for weight in agent.policy.parameters()]
    with pytest.raises(RewardError, match=f"log_metric's name '{name}' is one of the agents' metrics"):
        agent.learn(300)
    assert agent.num_updates == 0 and all(map(torch.equal, before, agent.policy.parameters()))


@pytest.mark.parametrize("settings", [{"cls": PPO}, {"cls": REINFORCE, "credit": "q"}, {"cls": PPO, "kl_target": 1.0}])
def test_our_metrics_have_the_names_that_are_refused(settings: dict[str, Any]) -> None:
    """So that no other name can be taken by one of them later."""
    _, _, rows = learn(lambda prompts, **_: [1.0] * len(prompts), **settings)
    assert {name for row in rows for name in row if not name.startswith(OURS)} <= OTHERS and len(rows[-1]) > 10


def test_a_nan_is_left_out_of_the_mean() -> None:
    """A metric of which nothing else is logged does not exist."""

    def reward(prompts: Any, log_metric: Any, **_: Any) -> list[float]:
        for name, value in (("none", math.nan), ("some", math.nan), ("some", 2.0), ("some", 4.0)):
            log_metric(name, value)
        return [1.0] * len(prompts)

    row = learn(reward, 1)[2][0]
    assert "none" not in row and row["some"] == 3.0


def ranks(r: int, folder: Path) -> dict[str, Any]:
    """What rank r finds where it alone has logged one of the names."""
    env = make(words())
    training = env.unwrapped.mdp.training
    training.add_metrics([("both", float(r)), ("both", 4.0), (f"rank {r}", 1.0)])
    return reward_metrics(env.unwrapped.mdp)


@pytest.mark.slow
def test_ranks_have_the_same_metrics(tmp_path: Path) -> None:
    """The means over all numbers of all ranks, also of a name that one rank has not logged."""
    found = run_on_two_ranks(ranks, tmp_path)
    assert found[0] == found[1] == {"both": 9.0 / 4, "rank 0": 1.0, "rank 1": 1.0}
