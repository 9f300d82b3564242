"""On a device without float64, as MPS, agents learn what they learn on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agents import GRPO, PPO, TransformerPolicy, collect
from agents.functional import widen, widest_float
from agents.sampling import new_generator
from experiments.evaluation import Evaluator
from tests.helpers.agents import every_kind
from tests.helpers.agents import task as words
from tests.helpers.models import task
from tests.helpers.policies import random_policy
from tests.helpers.standin import DEVICE, without_float64
from tests.helpers.standin.comparison import (
    DEVICES,
    largest_difference,
    one_number_a_row,
    place,
    rollouts_differ,
    train,
)
from textenv import exact

pytestmark = pytest.mark.usefixtures(one_number_a_row.__name__, "no_float64")


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The device has none, and the CPU draws tokens as the device does."""
    monkeypatch.setattr("agents.policy.categorical.widest_float", lambda device: torch.float32)
    widest_float.cache_clear()
    with without_float64():
        yield
    widest_float.cache_clear()


def test_the_device_has_no_float64() -> None:
    """Control of the tests of this file; the CPU has it."""
    here, there = torch.ones(3), torch.ones(3, device=DEVICE)
    with pytest.raises(TypeError, match="float64"):
        there.double()
    assert widen(here).dtype == torch.float64 and widen(there).dtype == torch.float32


@every_kind
def test_an_agent_of_a_toy_learns_what_it_learns_on_the_cpu(kind: Any) -> None:
    """Weights after two updates with micro-batches. Control: they have moved."""
    env = words()
    start = random_policy(env, scale=0.1).float()
    here, there = (train(kind, env, start, device, micro_batch_size=8 if kind is PPO else None) for device in DEVICES)
    assert largest_difference(there.policy, here.policy) < 1e-4 < 1e-3 < largest_difference(there.policy, start)


@every_kind
def test_a_language_model_learns_what_it_learns_on_the_cpu(kind: Any) -> None:
    """With prompts of different lengths. Control: the weights have moved."""
    policies, rollouts = [], []
    for device in DEVICES:
        env = place(place(task("llama"), "cpu", torch.float32), device)
        start = TransformerPolicy.for_env(env)
        rollouts.append(collect(env, start.to(device), 24, generator=new_generator(device, 0)))
        policies.append(train(kind, env, start, device, learning_rate=1e-3).policy)
    assert rollouts_differ(rollouts[1], rollouts[0]) == []
    assert largest_difference(policies[1], policies[0]) < 1e-4 < 1e-3 < largest_difference(policies[1], start)


@pytest.mark.parametrize("loss", ["dapo", "grpo", "cispo"])
def test_the_weights_of_completions_need_no_float64(loss: str) -> None:
    """Of losses that divide by a length."""
    env = words()
    start = random_policy(env, scale=0.1).float()
    here, there = (train(GRPO, env, start, device, loss=loss) for device in DEVICES)
    assert largest_difference(there.policy, here.policy) < 1e-4


def test_an_evaluation_is_that_of_the_cpu() -> None:
    """Exact, of a bound policy, and from samples, where the reference's are kept too."""
    env = words()
    policy = random_policy(env, scale=0.1).float()
    moved = copy.deepcopy(policy).to(DEVICE)
    assert exact.evaluate(env, moved).objective == pytest.approx(exact.evaluate(env, policy).objective, abs=1e-5)
    for evaluator in (Evaluator.for_env(env, 64), Evaluator(env, 64, None)):
        here, there = (evaluator.measure(each) for each in (policy, moved))
        assert there == pytest.approx(here, abs=1e-4, nan_ok=True) and here["objective"] != 0
