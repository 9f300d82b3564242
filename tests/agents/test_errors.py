"""Bad settings and environments are refused with a message that names the rule and the value."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import pytest

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.sampling import collect
from tests.helpers.agents import agent_of, every_kind, task
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, sparse, toy, words


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (PPO, {"n_epochs": 0}, "n_epochs"),
        (PPO, {"batch_size": 0}, "batch_size"),
        (PPO, {"value_warmup": -1}, "value_warmup"),
        (ActorCritic, {"value_warmup": -1}, "value_warmup"),
        (PPO, {"vf_learning_rate": -1e-3}, "vf_learning_rate"),
        (RLOO, {"num_generations": 1}, "num_generations"),
        (RLOO, {"n_epochs": 0}, "n_epochs"),
        (GRPO, {"num_generations": 1}, "num_generations"),
        (GRPO, {"clip_range_high": -0.1}, "clip_range_high"),
        (GRPO, {"micro_batch_size": 0}, "micro_batch_size"),
        (PPO, {"clip_range": -0.1}, "clip_range"),
        (ActorCritic, {"gae_lambda": 1.5}, "gae_lambda"),
        (REINFORCE, {"gamma": -1.0}, "gamma"),
        (REINFORCE, {"learning_rate": float("nan")}, "learning_rate"),
        (REINFORCE, {"kl_target": 0.0}, "kl_target"),
        (PPO, {"kl_target": -1.0}, "kl_target"),
        (ActorCritic, {"kl_target": float("nan")}, "kl_target"),
        (PPO, {"kl_target": 1.0, "kl_horizon": 0}, "kl_horizon"),
        (PPO, {"kl_target": 1.0, "kl_horizon": 31, "n_episodes": 32}, "kl_horizon"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    """The error names the setting, its range and the value."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    with pytest.raises(ValueError, match=rf"{message} must be in \[.*\], got"):
        kind(random_policy(env), env, **settings)


@pytest.mark.parametrize("kind", [RLOO, GRPO])
@pytest.mark.parametrize("value", [1, 1_000_001])
def test_the_message_has_the_range_of_a_group(kind: Any, value: int) -> None:
    """Its upper end is that of the setting's own range."""
    with pytest.raises(ValueError, match=rf"num_generations must be in \[{2 if value == 1 else 1}, 1000000\], got"):
        agent_of(kind, num_generations=value)


@every_kind
@pytest.mark.parametrize("estimator", ["k4", "K1", "", None])
def test_an_unknown_kl_estimator_is_refused(kind: Any, estimator: Any) -> None:
    """The error lists the three estimators, and the value."""
    with pytest.raises(ValueError, match=f"kl_estimator must be one of k1, k2, k3, got {estimator!r}"):
        agent_of(kind, kl_estimator=estimator)


@every_kind
def test_a_kl_target_needs_a_beta_to_start_from(kind: Any) -> None:
    """In a task with kl_coef = 0 a target is refused; without one the task is accepted, unless the agent needs pi*."""
    env = task(kl_coef=0.0)
    with pytest.raises(ValueError, match=r"kl_target needs an environment with kl_coef > 0 to start from, got 0"):
        agent_of(kind, env, kl_target=1.0)
    if kind is not PathConsistency:
        agent_of(kind, env)


@pytest.mark.parametrize("wrong", [[float("nan")], []])
def test_a_broken_gold_reward_is_refused_by_collect(wrong: list[float]) -> None:
    """`collect` checks the gold reward as a step does; the same task without it is accepted."""

    def appraiser(prompts: Any, **_: Any) -> list[float]:
        return wrong * len(prompts)

    env, plain = make(words(gold_reward=appraiser)), make(words())
    with pytest.raises(
        ValueError, match=r"'appraiser' must return (finite numbers, got nan|one score per completion: \d+, got 0)"
    ):
        collect(env, random_policy(env), 4)
    assert len(collect(plain, random_policy(plain), 4)) == 4


def test_a_wrapper_that_changes_the_reward_is_refused_by_collect() -> None:
    """`collect` reads the MDP, where such a wrapper has no effect; other wrappers are accepted."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=2)
    with pytest.raises(TypeError, match="TransformReward may change .* rewards.*reward="):
        collect(gym.wrappers.TransformReward(env, lambda reward: reward - 100.0), None)
    assert len(collect(gym.wrappers.RecordEpisodeStatistics(env), random_policy(env), 4)) == 4


def test_a_policy_of_another_vocabulary_is_refused() -> None:
    """The error has both sizes."""
    with pytest.raises(ValueError, match=r"got 4 and 3 tokens.*for_env"):
        PPO(random_policy(sparse()), toy())


@pytest.mark.parametrize("kind", [REINFORCE, ActorCritic, PPO])
def test_groups_must_fill_the_batch(kind: Any) -> None:
    """n_episodes not divisible by num_generations, and zero of either."""
    env = sparse()
    with pytest.raises(ValueError, match="n_episodes must be a positive multiple of num_generations, got 6 and 4"):
        kind(random_policy(env), env, n_episodes=6, num_generations=4)
    for name in ("n_episodes", "num_generations"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[1, .*, got 0"):
            kind(random_policy(env), env, **{name: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"credit": "tokens"}, "credit must be one of sequence, reward_to_go, q, got 'tokens'"),
        ({"baseline": "median"}, "baseline must be one of mean, leave_one_out, None, got 'median'"),
        ({"num_generations": 1}, "num_generations >= 2"),
    ],
)
def test_reinforce_refuses_unknown_settings(settings: dict[str, Any], message: str) -> None:
    """Wrong names, and leave_one_out in groups of one completion."""
    env = sparse()
    with pytest.raises(ValueError, match=message):
        REINFORCE(random_policy(env), env, **settings)


def test_a_copy_of_the_policy_is_made_before_learning() -> None:
    """Adam's moments belong to the parameters that were trained; a wrapper that keeps the parameters is accepted."""
    agent = agent_of(PPO)
    agent.learn(1)
    with pytest.raises(ValueError, match="must be called before learning"):
        agent.distribute(copy.deepcopy)
    agent.distribute(lambda policy: policy)
    new = agent_of(PPO)
    new.distribute(copy.deepcopy)
    assert new.optimization.learner is not new.policy
