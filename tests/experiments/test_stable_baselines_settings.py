"""Each setting of the agents of Stable-Baselines3 reaches the algorithm, with the meaning that its docstring gives."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO
from tests.helpers.policies import random_policy

ALL = [SB3PPO, SB3A2C, SB3MaskablePPO]
every_agent = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
# Where the algorithm keeps each setting, and other values than the defaults with what the algorithm then has.
REACHES: dict[str, tuple[Any, list[tuple[Any, Any]]]] = {
    "learning_rate": (lambda a: (a.lr_schedule(1.0), a.policy.optimizer.param_groups[0]["lr"]), [(0.02, (0.02, 0.02))]),
    "n_episodes": (lambda a: (a.n_envs, a.rollout_buffer.n_envs), [(6, (6, 6))]),
    "n_steps": (lambda a: (a.n_steps, a.rollout_buffer.buffer_size), [(5, (5, 5))]),
    "gae_lambda": (lambda a: (a.gae_lambda, a.rollout_buffer.gae_lambda), [(0.3, (0.3, 0.3))]),
    "vf_coef": (lambda a: a.vf_coef, [(0.7, 0.35), (0.0, 0.0)]),
    "max_grad_norm": (lambda a: a.max_grad_norm, [(0.03, 0.03)]),
    "normalize_advantage": (lambda a: a.normalize_advantage, [(True, True)]),
    "seed": (lambda a: a.seed, [(3, 3), (None, None)]),
    "n_epochs": (lambda a: a.n_epochs, [(2, 2)]),
    "batch_size": (lambda a: a.batch_size, [(16, 16), (None, 32)]),  # None: 4 environments, 8 steps
    "clip_range": (lambda a: a.clip_range(1.0), [(0.05, 0.05)]),
}
DEFAULTS = {"n_episodes": 4, "n_steps": 8, "seed": 0}


def agent_of(kind: Any, **settings: Any) -> Any:
    """An agent of Stable-Baselines3 on a toy."""
    env = gym.make_vec("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=2, kl_coef=0.3)
    return kind(random_policy(env).float(), env, **(DEFAULTS | settings))


@every_agent
def test_every_setting_reaches_the_algorithm(kind: Any) -> None:
    """Other values than the defaults arrive, and (control) the defaults are other values. A new field needs a line."""
    for field in fields(kind):
        if field.name in ("initial_policy", "env"):
            continue
        where, values = REACHES[field.name]
        default = where(agent_of(kind).algorithm)
        for value, expected in values:
            assert where(agent_of(kind, **{field.name: value}).algorithm) == pytest.approx(expected), field.name
        assert any(expected != default for _, expected in values), field.name


@every_agent
def test_advantages_of_the_buffer_are_gae_with_gamma_one(kind: Any) -> None:
    """A_t = delta_t + lambda A_{t+1} within an episode, of the rewards with both halves of the KL."""
    agent = agent_of(kind, gae_lambda=0.3, normalize_advantage=False)
    agent.learn(1)
    buffer = agent.algorithm.rollout_buffer
    swapped = buffer.values.shape[0] != 8  # PPO's minibatches flatten the arrays

    def shaped(x: np.ndarray) -> np.ndarray:
        return np.asarray(x.reshape(4, 8).T if swapped else x)

    values, advantages = shaped(buffer.values), shaped(buffer.advantages)
    checked = 0
    for row in range(4):
        for t in reversed(range(7)):  # the last step bootstraps from a value that the buffer does not keep
            follows = 1.0 - float(buffer.episode_starts[t + 1, row])
            delta = buffer.rewards[t, row] + follows * values[t + 1, row] - values[t, row]
            assert advantages[t, row] == pytest.approx(delta + 0.3 * follows * advantages[t + 1, row], abs=1e-5)
            checked += int(follows > 0)
    assert checked > 5


@every_agent
def test_the_value_loss_has_the_weight_of_our_agents(kind: Any) -> None:
    """One step on the value loss alone: the gradient of vf_coef E[1/2 (V - target)^2] by the value head's bias.

    Adam's first step is the learning rate against the sign of the gradient; its first moment is a tenth of it.
    """
    vf_coef = 0.7
    agent = agent_of(
        kind, vf_coef=vf_coef, max_grad_norm=1e9, learning_rate=0.0, **({"n_epochs": 1} if kind is not SB3A2C else {})
    )
    agent.learn(1)
    buffer, bias = agent.algorithm.rollout_buffer, agent.policy.value_head.bias
    moment = agent.algorithm.policy.optimizer.state[bias]["exp_avg"].item()
    errors = buffer.values.flatten() - buffer.returns.flatten()
    assert moment == pytest.approx(0.1 * vf_coef * float(errors.mean()), rel=1e-3)
    assert abs(float(errors.mean())) > 1e-3


@every_agent
def test_the_metrics_are_those_of_stable_baselines_and_the_mean_score(kind: Any) -> None:
    """`objective/scores` is the mean score of the completions that ended in the update; the rest is train/*."""
    agent, rows, ended = agent_of(kind), list[dict[str, float]](), list[list[float]]()
    envs = agent.algorithm.env
    step_wait = envs.step_wait

    def keep() -> Any:
        result = step_wait()
        ended[-1] += [info["score"] for info in result[3] if "score" in info]
        return result

    def next_update(agent: Any, rollout: Any, metrics: dict[str, float]) -> None:
        assert rollout is None
        rows.append(metrics)
        ended.append([])

    envs.step_wait = keep
    ended.append([])
    agent.learn(96, next_update)
    assert len(rows) == 3 and agent.num_timesteps == 96 and agent.num_updates == 3
    for row, scores in zip(rows, ended, strict=False):
        assert row["objective/scores"] == pytest.approx(np.mean(scores)) and len(scores) > 4
        assert all(name.startswith("train/") for name in row.keys() - {"objective/scores"})
    assert rows[0]["train/value_loss"] > 0 and torch.isfinite(torch.tensor(list(rows[0].values()))).all()
