"""Warnings in training: each pathology of a toy warns once, with its cure and in the metrics; no healthy run warns."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, TrainingWarning
from agents.files import DamagedFile
from agents.policy import TransformerPolicy
from agents.sampling import Generation, sample
from agents.training import HealthMonitor, health_state, restore_health
from agents.training.conditions import CONDITIONS
from agents.training.health import MOVE_UPDATES
from tests.helpers.agents import every_kind
from tests.helpers.tasks import letter_values, make, words
from tests.helpers.threads import on_threads
from textenv.references import TableReference

ENDLESS = TableReference(np.log(np.array([[1e-9, 0.4, 0.3, 0.3 - 1e-9]])), np.zeros((1, 4), dtype=np.int64))
FEW = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def constant(prompts: Any, **_: Any) -> list[float]:
    """The same score for every completion."""
    return [0.5] * len(prompts)


class Noise:
    """A reward that has nothing to do with the completion."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)

    def __call__(self, prompts: Any, **_: Any) -> list[float]:
        return list(map(float, self.rng.normal(size=len(prompts))))


def opposite(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
    """A gold reward that falls as the score rises."""
    return [-value for value in letter_values(prompts, completions, completion_ids)]


def wrong_log_probs(*arguments: Any) -> Generation:
    """The loop sampler, with log-probabilities that are wrong by 0.3."""
    found = sample(*arguments)
    sampled = found.log_probs != 0
    return found._replace(log_probs=torch.where(sampled, found.log_probs - 0.3, 0.0))


@pytest.fixture(scope="module")
def start() -> Callable[..., tuple[Any, TransformerPolicy]]:
    """Returns a function: a task of four words, and a copy of a policy that starts at its reference."""
    policies: dict[bool, TransformerPolicy] = {}

    def of(**arguments: Any) -> tuple[Any, TransformerPolicy]:
        env = make(words(4, **({"kl_coef": 0.1, "max_new_tokens": 3} | arguments)))
        endless = "reference" in arguments
        if endless not in policies:
            policies[endless] = TransformerPolicy.for_env(env, **FEW)
        return env, copy.deepcopy(policies[endless])

    return of


def learn(agent: Any, updates: int, **arguments: Any) -> tuple[dict[str, str], list[dict[str, float]]]:
    """Trains for some updates; returns the warnings by name, and the metrics."""
    rows: list[dict[str, float]] = []

    def keep(agent: Any, rollout: Any, metrics: dict[str, float]) -> bool:
        rows.append(metrics)
        return len(rows) < updates

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent.learn(10**9, callback=keep, **arguments)
    messages = [str(each.message) for each in caught if issubclass(each.category, TrainingWarning)]
    found = dict(message.split(": ", 1) for message in messages)
    assert len(found) == len(messages)  # none twice
    in_rows = [name.removeprefix("warnings/") for row in rows for name in row if name.startswith("warnings/")]
    assert sorted(in_rows) == sorted(found) and all(math.isfinite(value) for row in rows for value in row.values())
    return found, rows


GROUPS = {"num_generations": 4}
PATHOLOGIES: list[tuple[str, Any, dict[str, Any], dict[str, Any], int]] = [
    ("equal_scores", REINFORCE, {"reward": constant}, GROUPS, 6),
    ("equal_scores", PPO, {"reward": constant}, {}, 6),
    ("score_noise", GRPO, {"reward": Noise()}, {}, 6),
    ("no_completion_ends", RLOO, {"reference": ENDLESS}, GROUPS, 6),
    ("entropy_gone", GRPO, {}, {"learning_rate": 10.0}, 8),
    ("objective_fell", REINFORCE, {"kl_coef": 2.0}, {"learning_rate": 10.0}, 12),
    ("explained_variance_negative", ActorCritic, {}, {"vf_learning_rate": 1.0}, 14),
    ("effective_sample_small", PPO, {}, {"n_epochs": 40, "clip_range": None, "learning_rate": 3e-3}, 6),
    ("first_ratio_off", ActorCritic, {}, {"sampler": wrong_log_probs}, 3),
    ("first_ratio_off", RLOO, {}, GROUPS | {"sampler": wrong_log_probs}, 3),
    ("kl_negative", REINFORCE, {}, {"sampler": wrong_log_probs, "learning_rate": 1e-5}, 6),
    ("kl_runs_away", REINFORCE, {"kl_coef": 2.0}, {"learning_rate": 10.0}, 12),
    ("gold_falls", GRPO, {"gold_reward": opposite}, {"learning_rate": 1e-3}, 60),
    ("nothing_moves", REINFORCE, {}, {"learning_rate": 0.0}, MOVE_UPDATES + 1),
    ("nothing_moves", PPO, {}, {"max_grad_norm": 1e-9}, MOVE_UPDATES + 1),
    ("gradient_large", ActorCritic, {}, {"vf_coef": 1e6}, 12),
    ("skipped_steps", REINFORCE, {}, {"broken": 2}, 4),
]


@pytest.mark.parametrize(
    ("name", "kind", "arguments", "settings", "updates"),
    PATHOLOGIES,
    ids=[f"{name}-{kind.__name__}" for name, kind, *_ in PATHOLOGIES],
)
def test_a_pathology_warns(
    start: Any, name: str, kind: Any, arguments: dict[str, Any], settings: dict[str, Any], updates: int
) -> None:
    """By its name, with a cure, once, and in one row of the metrics."""
    env, policy = start(**arguments)
    settings = {"seed": 0} | settings
    sampler, broken = settings.pop("sampler", sample), settings.pop("broken", None)
    agent = kind(policy, env, **settings)
    agent.sampler = sampler
    if broken is not None:
        measure = agent.optimization.measure_gradient
        agent.optimization.measure_gradient = lambda: measure() * (math.nan if agent.num_updates == broken else 1.0)
    found, rows = learn(agent, updates)
    assert name in found, found
    assert len(rows) == updates and "{" not in found[name]


@every_kind
def test_a_healthy_run_does_not_warn(start: Any, kind: Any) -> None:
    """It learns, for many updates."""
    env, policy = start()
    found, rows = learn(kind(policy, env, learning_rate=1e-3, seed=0), 60)
    assert found == {}
    assert np.mean([row["objective/scores"] for row in rows[-5:]]) > 1.5 * rows[0]["objective/scores"]


@pytest.mark.parametrize("seed", range(3))
def test_one_completion_an_update_shows_no_fall(start: Any, seed: int) -> None:
    """Its mean return has no standard error: the returns of a policy that hardly changes differ by chance."""
    env, policy = start()
    assert learn(ActorCritic(policy, env, n_episodes=1, learning_rate=1e-9, seed=seed), 9)[0] == {}


def test_every_condition_is_provoked_in_training() -> None:
    """But for the mean ratio, which is a weaker sign than the effective sample size; see test_conditions.py."""
    assert {name for name, *_ in PATHOLOGIES} == {each.name for each in CONDITIONS} - {"ratio_off"}


def test_each_condition_warns_once_a_run(start: Any) -> None:
    """Not again where `learn` continues, but again in a new run; the warning names the line that called `learn`."""
    env, policy = start(reward=constant)
    agent = REINFORCE(policy, env, seed=0)
    assert "equal_scores" in learn(agent, 6)[0]
    assert "equal_scores" not in learn(agent, 6, reset_num_timesteps=False)[0]
    assert "equal_scores" in learn(agent, 6)[0]
    with pytest.warns(TrainingWarning, match="equal_scores") as caught:
        agent.learn(2000)
    assert [each.filename for each in caught if "equal_scores" in str(each.message)] == [__file__]


def test_a_resumed_run_knows_how_often_the_reference_ends(start: Any, tmp_path: Path) -> None:
    """It is measured once a run: the value is saved, so that a resumed run decides as one that was not interrupted."""
    env, policy = start(reference=ENDLESS)
    agent = RLOO(policy, env, seed=0)
    learn(agent, 6)
    assert len(agent.health.ends) == 1 and agent.health.ends[0] is not None
    agent.save(tmp_path)
    assert RLOO.load(tmp_path, env=env).health.ends == agent.health.ends
    state, _ = health_state(agent.health)
    for ends, expected in (([], []), ([None], [None])):
        restore_health(agent, state | {"ends": ends}, {}, tmp_path)
        assert agent.health.ends == expected
    del state["ends"]  # of an agent that was saved before
    restore_health(agent, state, {}, tmp_path)
    assert agent.health.ends == []
    for wrong in (3, ["x"]):
        with pytest.raises(DamagedFile, match="health: ends must be"):
            restore_health(agent, state | {"ends": wrong}, {}, tmp_path)


@pytest.mark.filterwarnings("ignore::agents.TrainingWarning")
def test_ranks_find_the_same_conditions(start: Any) -> None:
    """Their completions differ, and from rank 1's alone nothing would be found; rank 0 saves what all remember."""
    env, policy = start(reference=TableReference(np.log([[0.1, 0.4, 0.3, 0.2]]), np.zeros((1, 4), dtype=np.int64)))

    def watch(agent: Any, few: bool) -> tuple[set[str], list[float | None]]:
        monitor, rollout = HealthMonitor(), agent.collect()
        if few:
            rollout.mask[1:], rollout.mask[0, 1:] = False, False  # one token is left
        for _ in range(5):
            monitor.observe(agent, {"completions/clipped_ratio": 1.0}, rollout)
        return monitor.warned, monitor.ends

    def agent() -> RLOO:
        return RLOO(copy.deepcopy(policy), env, n_episodes=16, seed=0)

    (first, ends), (second, others) = on_threads(lambda rank: watch(agent(), few=rank == 1))
    assert first == second == {"no_completion_ends"} and ends == others
    assert watch(agent(), few=True)[0] == set()  # control


def test_a_warning_can_be_an_error(start: Any) -> None:
    """As any warning of Python's; it is a UserWarning."""
    env, policy = start(reward=constant)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingWarning)
        with pytest.raises(UserWarning, match="equal_scores: the scores of nearly all groups are equal"):
            REINFORCE(policy, env, seed=0).learn(10_000)


def test_weights_that_a_warm_up_leaves_alone_are_no_reason_for_a_warning(start: Any) -> None:
    """The weights are compared from the first update that trains the model; with learning rate 0 they do not move."""
    env, policy = start()
    for rate, expected in ((1e-3, set()), (0.0, {"nothing_moves"})):
        agent = PPO(copy.deepcopy(policy), env, value_warmup=12, learning_rate=rate, vf_learning_rate=1e-3, seed=0)
        found, rows = learn(agent, 12 + MOVE_UPDATES)
        assert found == {} and not any("policy/weight_change" in row for row in rows)
        found, rows = learn(agent, 2, reset_num_timesteps=False)
        assert set(found) == expected and ["policy/weight_change" in row for row in rows] == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_steps_in_bfloat16_are_steps(start: Any, dtype: torch.dtype) -> None:
    """The master weights are compared: steps that bfloat16 would round to nothing are no reason for a warning."""
    env, policy = start()
    found, rows = learn(REINFORCE(policy.cast(dtype), env, learning_rate=1e-6, seed=0), MOVE_UPDATES + 1)
    assert found == {} and 1e-6 < rows[-1]["policy/weight_change"] < 1e-3


def test_evaluations_below_the_reference_warn() -> None:
    """Three in a row, once; with a standard error they must be below by more than chance."""
    monitor = HealthMonitor()
    for _ in range(2):
        assert monitor.observe_evaluation({"objective": -0.5}, reference=-0.1, optimum=1.0) == {}
    with pytest.warns(TrainingWarning, match="below_reference: the policy is worse than the reference"):
        assert monitor.observe_evaluation({"objective": -0.5}, -0.1, 1.0) == {"warnings/below_reference": 1.0}
    assert monitor.observe_evaluation({"objective": -0.5}, -0.1, 1.0) == {}
    noisy, better = HealthMonitor(), HealthMonitor()
    for _ in range(5):
        assert noisy.observe_evaluation({"objective": -0.5, "objective_stderr": 0.2}, -0.1) == {}
        assert better.observe_evaluation({"objective": 0.2}, -0.1, None) == {}
        assert better.observe_evaluation({"objective": -9.0}, None) == {}
