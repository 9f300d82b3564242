"""The same work on the CPU and on the stand-in device, for comparison."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import Agent
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from tests.helpers.standin.memory import TYPE
from textenv import get_mdp

CLOSE = 1e-5
DEVICES = ("cpu", TYPE)


@pytest.fixture
def one_number_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same seed CPU and device draw the same tokens, see `draw_alike`."""
    draw_alike(monkeypatch)


def draw_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes CPU and device draw the same random numbers for the same tokens.

    The CPU draws as devices do, also from a small vocabulary. Devices leave out completions that have ended after each
    token, as the CPU does, and not after each eighth: both draw as many numbers.
    """
    monkeypatch.setattr("agents.policy.categorical.LARGE_VOCABULARY", 0)
    monkeypatch.setattr("agents.sampling.loop.CHECK_INTERVAL", 1)


def place(env: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """Moves the reference of a task, where it is a language model; returns the task."""
    model = getattr(get_mdp(env).reference, "model", None)
    if model is not None:
        model.to(device, dtype)
    return env


def rollouts_differ(found: Rollout, expected: Rollout, close: float = CLOSE) -> list[str]:
    """The fields in which two rollouts differ: whole numbers at all, others by more than `close`."""
    names = []
    for name, other in vars(expected).items():
        one = getattr(found, name)
        if isinstance(other, Tensor):
            alike = one.shape == other.shape and one.dtype == other.dtype
            numbers = (x.cpu().double() for x in (one, other))
            alike = alike and torch.allclose(*numbers, rtol=close, atol=close, equal_nan=True)
        elif isinstance(other, np.ndarray):
            alike = bool((one == other).all())
        elif name == "tokenizer":  # of the task, which may be another one
            continue
        else:
            alike = one == other
        names += [] if alike else [name]
    return names


def largest_difference(found: TransformerPolicy, expected: TransformerPolicy) -> float:
    """Between the weights of two policies, in absolute value."""
    own, other = found.state_dict(), expected.state_dict()
    assert own.keys() == other.keys()
    return max(float((own[name].cpu().double() - x.cpu().double()).abs().max()) for name, x in other.items())


def devices_of(agent: Agent) -> set[str]:
    """The types of the devices of an agent's weights and gradients, and of the moments of its optimizer."""
    state = agent.optimization.optimizer.state
    moments = [x for each in state.values() for name, x in each.items() if isinstance(x, Tensor) and name != "step"]
    weights = list(agent.policy.parameters())
    return {x.device.type for x in [*weights, *(p.grad for p in weights if p.grad is not None), *moments]}


def train(kind: Any, env: Any, policy: TransformerPolicy, device: str, updates: int = 2, **settings: Any) -> Agent:
    """An agent after some updates of a copy of `policy` on a device."""
    agent: Agent = kind(copy.deepcopy(policy).to(device), env, **{"n_episodes": 16, "seed": 0, **settings})
    agent.learn(10**9, callback=lambda agent, rollout, metrics: agent.num_updates < updates)
    return agent
