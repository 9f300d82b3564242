"""Small agents for the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, Agent, PathConsistency
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, random_reference, words
from textenv import exact

KINDS = [REINFORCE, ActorCritic, PPO, RLOO, GRPO, PathConsistency]


every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
# those whose loss weighs grad log pi by an advantage that an update computes once
every_advantage = pytest.mark.parametrize("kind", KINDS[:-1], ids=lambda kind: kind.__name__)


FOREVER = 10**9


def task(**arguments: Any) -> Any:
    """A small task with masks and prompts of different lengths."""
    return make(words(4, reference=random_reference(4, 3, sparse=True), max_new_tokens=4) | arguments)


def agent_of(kind: Any, env: Any = None, **settings: Any) -> Any:
    """An agent with a tiny policy in float32."""
    env = task() if env is None else env
    return kind(random_policy(env, scale=0.1).float(), env, **{"n_episodes": 16, "seed": 0, **settings})


def stop_after(updates: int) -> Callable[[Agent, Rollout, dict[str, float]], bool]:
    """A callback that stops learning after some updates."""
    return lambda agent, rollout, metrics: agent.num_updates < updates


def weights(agent: Agent) -> torch.Tensor:
    """All weights of a policy in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in agent.policy.state_dict().values()])


def normalized_objective(env: Any, policy: TransformerPolicy) -> float:
    """The share of the way from the reference (0) to the exact optimum (1) that J has come."""
    optimum = exact.solve(env)
    return optimum.normalized_objective(exact.evaluate(env, policy).objective)
