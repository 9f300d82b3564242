"""Every setting of every agent has a type and a range: absurd values are refused by name, or train."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Optional, get_args, get_type_hints

import numpy as np
import pytest
import torch

from agents import PPO, REINFORCE, Agent, PathConsistency, TransformerPolicy
from agents.functional import ESTIMATORS
from agents.ranges import LARGEST, RANGES, check_fields, check_integer, check_range
from agents.training import SCHEDULES
from tests.helpers.agents import KINDS, agent_of, every_kind, task, weights
from tests.helpers.policies import random_policy
from tests.helpers.tasks import toy

ABSURD: list[Any] = [
    math.inf, -math.inf, math.nan, 1e308, -1e308, 1e-308, 10**30, -(10**30), 10**400, -1, 0, 0.5, 1.5, True, None,
    [], {}, "3", "", b"1", object(), 1j, np.float32(np.inf), np.bool_(True), np.array([1, 2]),
]  # fmt: skip
SETTINGS = [(kind, f.name) for kind in KINDS for f in fields(kind) if f.name not in ("policy", "env")]


@pytest.mark.parametrize(("kind", "name"), SETTINGS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_an_absurd_value_is_refused_by_name_or_trains(kind: Any, name: str) -> None:
    """Each value for each setting: an error with the setting's name, or an update whose metrics are finite."""
    refused = 0
    for value in ABSURD:
        try:
            agent = agent_of(kind, **{"n_episodes": 16, name: value})
        except (ValueError, TypeError) as error:
            assert name in str(error), f"{value!r}: {error}"
            refused += 1
            continue
        rows: list[dict[str, float]] = []
        agent.learn(1, callback=lambda agent, rollout, metrics, rows=rows: rows.append(metrics))
        assert all(map(math.isfinite, rows[0].values())), f"{value!r}: {rows[0]}"
        json.dumps(getattr(agent, name))
    assert refused >= 15  # inf and nan, the huge ones, and other types are refused for every setting


@every_kind
def test_ordinary_values_are_accepted(kind: Any) -> None:
    """Control: both ends of each range, and NumPy's numbers, which become Python's."""
    agent = agent_of(kind, n_episodes=np.int64(16), learning_rate=np.float32(0.5), gamma=1, seed=np.uint32(7))
    settings = {name: getattr(agent, name) for name in kind.hyperparameters()}
    assert json.loads(json.dumps(settings)) == settings
    assert (agent.n_episodes, agent.learning_rate, agent.seed) == (16, 0.5, 7)
    small = {f.name: RANGES[f.name].low for f in fields(kind) if f.name in RANGES}
    groups = {"n_episodes": 4, "num_generations": 2, "kl_horizon": 4, "micro_batch_size": 4}
    if kind is PathConsistency:  # which has no use for a discount and a cap
        own: dict[str, Any] = {"gamma": 1.0, "sampler_cap": 2.0, "batch_size": 2, "n_epochs": 2}
    else:  # what the others do something with
        own = {"sampler_correction": "mask"} | ({"credit": "q"} if kind is REINFORCE else {})
    agent_of(kind, **(small | groups | own))


def test_every_number_of_an_agent_is_in_the_table() -> None:
    """So that a new setting gets a range; the table has no other names of our agents."""
    numbers = {f.name for kind in KINDS for f in fields(kind) if {"int", "float"} & set(str(f.type).split())}
    assert numbers <= set(RANGES) and set(RANGES) - numbers == {"n_steps"}  # n_steps is Stable-Baselines3's


def test_a_setting_of_a_new_agent_is_checked_by_its_type() -> None:
    """A setting that the table does not have must be of its type, and in the range of all numbers."""

    @dataclass
    class Settings:
        bonus: float = 0.0
        rounds: int | None = None
        fast: bool = False
        mode: str = "plain"

    check_fields(Settings(bonus=-2.5, rounds=3, fast=True, mode="other"))
    floats = [{"bonus": value} for value in (math.nan, math.inf, 2 * LARGEST, -2 * LARGEST, None, "1")]
    for wrong in (*floats, {"rounds": 2.0}, {"rounds": True}, {"rounds": 10**31}, {"fast": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            check_fields(Settings(**wrong))


if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(eq=False)
class Typed(REINFORCE):
    """An agent from outside with Literals."""

    side: Literal["left", "right"] = "left"
    level: Literal[1, 2] | None = None
    old: Optional[Literal["x"]] = None  # noqa: UP045
    free: Literal["auto"] | str = "auto"


@dataclass(eq=False)
class Unresolved(Typed):
    """Has an annotation that is not known when it runs."""

    amount: Decimal | None = None


@pytest.mark.parametrize("kind", [Typed, Unresolved])
def test_a_literal_of_a_new_agent_is_checked(kind: Any) -> None:
    """Each of its values is accepted, and None where it may be; the message names them."""
    for right in ({"side": "right"}, {"level": 2}, {"level": None}, {"old": "x"}, {"free": "other"}):
        agent_of(kind, **right)
    wrong: list[Any] = [("side", "up", "left, right"), ("side", None, "left, right"), ("side", [], "left, right")]
    wrong += [("level", 3, "1, 2, None"), ("level", "1", "1, 2, None"), ("old", "y", "x, None")]
    wrong += [("lr_schedule", "step", "constant, linear, cosine"), ("baseline", "median", "mean, leave_one_out, None")]
    for name, value, allowed in wrong:
        with pytest.raises(ValueError, match=re.escape(f"{name} must be one of {allowed}, got {value!r}.")):
            agent_of(kind, **{name: value})


def test_every_literal_of_an_agent_is_one_of_the_values_that_it_uses() -> None:
    """The schedules and the estimators that there are."""
    assert get_args(get_type_hints(Agent)["lr_schedule"]) == tuple(SCHEDULES)
    assert get_args(get_type_hints(Agent)["kl_estimator"]) == tuple(ESTIMATORS)


def test_the_message_has_rule_and_value() -> None:
    """For a range, a number and an integer."""
    with pytest.raises(ValueError, match=r"^gamma must be in \[0, 1\], got 1.5\.$"):
        check_range("gamma", 1.5, 0, 1)
    with pytest.raises(ValueError, match=r"^gamma must be a number, got '1'\.$"):
        check_range("gamma", "1", 0, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^n_epochs must be an integer, got 1.0\.$"):
        check_integer("n_epochs", 1.0, 1)
    check_range("target_kl", None, 0)


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, 1e-308, 1e308, None, "1", True, np.float32(np.nan)])
def test_an_absurd_temperature_is_refused(value: Any) -> None:
    """In the policy itself; control: a small and a large one sample."""
    env = toy()
    model = random_policy(env).model
    with pytest.raises(ValueError, match="temperature must be a finite number > 0"):
        TransformerPolicy(model, temperature=value)
    for temperature in (1e-6, 1e6):
        PPO(TransformerPolicy(model.float(), temperature=temperature), env, n_episodes=8).learn(1)


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, 10**30, math.inf])
def test_absurd_sizes_of_a_policy_are_refused(name: str, value: Any) -> None:
    """Those of the model, and of the small GPT-2 of a toy."""
    env = toy()
    with pytest.raises(ValueError, match=f"{name} must be"):
        if name == "vocab_size":
            TransformerPolicy(random_policy(env).model, vocab_size=value)
        else:
            TransformerPolicy.for_env(env, **{name: value})
    with pytest.raises(ValueError, match="hidden_size must be a multiple of num_attention_heads, got 6 and 4"):
        TransformerPolicy.for_env(env, hidden_size=6)


@pytest.mark.parametrize("total", [-1, math.nan, math.inf, 1.5, 10**16, 1e300, "10", None, True, [], np.array([1, 2])])
def test_learn_refuses_what_is_no_number_of_tokens(total: Any) -> None:
    """Before it samples. nan compares false with everything; inf would be found by the reward's `trainer_state`."""
    agent = agent_of(REINFORCE, task())
    before = agent.generator.get_state()
    with pytest.raises(ValueError, match="^total_timesteps must be a whole number, at "):
        agent.learn(total)
    assert torch.equal(agent.generator.get_state(), before)


@pytest.mark.parametrize("total", [1, 1.0, np.int32(1), np.float32(1)])
def test_learn_takes_whole_numbers_of_any_kind(total: Any) -> None:
    """Control: `learn(2e5)` is a habit."""
    assert agent_of(REINFORCE, task()).learn(total).num_updates == 1


def test_learn_for_no_tokens_changes_nothing() -> None:
    """As a run that is resumed at its end does: no update, no callback. Control: for one token there is an update."""
    agent, called = agent_of(REINFORCE, task()), list[int]()
    before = weights(agent).clone()
    for total, updates in ((0, 0), (1, 1), (0, 1)):
        agent.learn(total, callback=lambda agent, *_: called.append(agent.num_updates), reset_num_timesteps=False)
        assert agent.num_updates == len(called) == updates
        assert torch.equal(weights(agent), before) is (updates == 0)
    agent.learn(0)
    assert agent.num_updates == agent.num_timesteps == 0
