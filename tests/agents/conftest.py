"""Fixtures of the agents' tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from agents.policy import TransformerPolicy
from tests.helpers.gradients import TASKS, Case


@pytest.fixture(scope="module")
def small_toy() -> tuple[Any, TransformerPolicy]:
    """A toy and a policy at its reference."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3)
    return env, TransformerPolicy.for_env(env, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """Every task with one policy."""
    return {task: Case(task) for task in TASKS}


@pytest.fixture(params=TASKS)
def case(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each task in turn."""
    return cases[request.param]
