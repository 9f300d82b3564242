"""CleanRL's way to step our environments: `FlattenObservation` in a `SyncVectorEnv`, and a network over a flat vector.

CleanRL's own ppo.py is the user's to bring: `--env-id module:id`, where the module registers the flat environment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

from textenv.wrappers import TerminateIllegal

IDS = {"FlatToy-v0": "textenv/Toy-v0", "FlatTajMahal-v0": "textenv/TajMahal-v0"}


def flat(task: str) -> Any:
    """The entry point that a user's module registers."""
    return gym.wrappers.FlattenObservation(TerminateIllegal(gym.make(task), -1.0))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The ids, in Gymnasium's registry for one test."""
    for name, task in IDS.items():
        gym.register(name, entry_point=flat, kwargs={"task": task}, disable_env_checker=True)
    yield
    for name in IDS:
        del gym.registry[name]


def make_envs(name: str, num_envs: int) -> Any:
    """As CleanRL's `make_env`: of `gym.make`, with statistics, in Gymnasium's loop."""
    thunk = lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(name))  # noqa: E731
    return gym.vector.SyncVectorEnv([thunk] * num_envs)


@pytest.mark.parametrize("name", IDS)
def test_a_flat_observation_is_the_dict(name: str) -> None:
    """`unflatten` gives the observation back, at every step; the end of each episode has its statistics."""
    envs, space = make_envs(name, 3), gym.make(IDS[name]).observation_space
    assert len(envs.single_observation_space.shape) == 1 and isinstance(envs.single_action_space, gym.spaces.Discrete)
    observation, _ = envs.reset(seed=0)
    rng, lengths, steps = np.random.default_rng(0), [], np.zeros(3)
    for _ in range(30):
        for env, row in zip(envs.envs, observation, strict=True):
            state = env.unwrapped.episodes.state
            back = gym.spaces.unflatten(space, row)
            np.testing.assert_array_equal(back["input_ids"], state.input_ids[0])
            np.testing.assert_array_equal(back["attention_mask"], state.attention_mask[0])
        live = np.array([env.unwrapped.episodes.live[0] for env in envs.envs])
        observation, _, terminated, _, info = envs.step(rng.integers(envs.single_action_space.n, size=3))
        steps = np.where(live, steps + 1, 0)
        assert info.get("_episode", np.zeros(3, dtype=bool)).tolist() == terminated.tolist()
        if terminated.any():
            assert info["episode"]["l"][terminated].tolist() == steps[terminated].tolist()
            lengths += steps[terminated].tolist()
    assert len(lengths) > 10


def mean_returns(learning_rate: float) -> list[float]:
    """Mean return of each of 60 updates of a policy gradient over a flat observation, with CleanRL's network."""
    torch.manual_seed(0)
    envs = make_envs("FlatToy-v0", 16)
    size = int(np.prod(envs.single_observation_space.shape))
    actor = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, int(envs.single_action_space.n)))
    optimizer = torch.optim.Adam(actor.parameters(), lr=learning_rate)
    observation, _ = envs.reset(seed=0)
    means = []
    for _ in range(60):
        log_probs, rewards, ends = [], [], []
        for _ in range(20):
            distribution = torch.distributions.Categorical(logits=actor(torch.as_tensor(observation).float()))
            action = distribution.sample()
            observation, reward, terminated, *_ = envs.step(action.numpy())
            log_probs.append(distribution.log_prob(action))
            rewards.append(torch.as_tensor(reward))
            ends.append(torch.as_tensor(terminated))
        to_go, returns = torch.zeros(16, dtype=torch.float64), []
        for reward, end in zip(reversed(rewards), reversed(ends), strict=True):
            to_go = reward + torch.where(end, 0.0, to_go)
            returns.insert(0, to_go)
        weights = torch.stack(returns)
        optimizer.zero_grad()
        (-torch.stack(log_probs) * (weights - weights.mean())).mean().backward()
        optimizer.step()
        means.append(float(torch.stack(rewards).sum() / torch.stack(ends).sum()))
    return means


@pytest.mark.slow
def test_a_network_over_the_flat_vector_learns() -> None:
    """The mean return rises; without steps (control) it does not."""
    learned, unchanged = mean_returns(3e-3), mean_returns(0.0)
    assert np.mean(learned[-10:]) > np.mean(learned[:10]) + 0.3
    assert np.mean(unchanged[-10:]) < np.mean(unchanged[:10]) + 0.2
