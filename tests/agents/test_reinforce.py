"""REINFORCE with credit="q": the continuations that estimate Q."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch

from agents import REINFORCE
from agents.sampling import sample
from tests.helpers.agents import agent_of
from tests.helpers.policies import random_policy


def test_continuations_count_as_timesteps() -> None:
    """A timestep is a token, also one that was sampled only to estimate Q."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    plain, q = (REINFORCE(random_policy(env), env, credit=credit, seed=0) for credit in ("reward_to_go", "q"))
    for agent in (plain, q):
        agent.learn(1)
    assert q.num_timesteps > plain.num_timesteps > 0


def test_the_sampler_also_samples_the_continuations() -> None:
    """`agent.sampler` samples the completions and all continuations."""
    agent = agent_of(REINFORCE, credit="q", num_continuations=2)
    rows: list[int] = []

    def counted(policy: Any, mdp: Any, state: Any, generator: torch.Generator) -> Any:
        rows.append(len(state.prompt))
        return sample(policy, mdp, state, generator)

    agent.sampler = counted
    rollout = agent.collect()
    assert rows == [len(rollout)]
    agent.train(rollout)
    assert sum(rows) == len(rollout) + 2 * int((rollout.mask.sum(dim=1) - 1).sum())
