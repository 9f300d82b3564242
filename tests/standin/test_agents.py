"""Agents compute on the device what they compute on the CPU: rollouts, weights and metrics, with the same seeds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents import GRPO, PPO, REINFORCE, Agent, TransformerPolicy, collect
from agents.sampling import new_generator
from tests.helpers.agents import every_kind, task
from tests.helpers.policies import random_policy
from tests.helpers.standin import DEVICE, counting
from tests.helpers.standin.comparison import (
    CLOSE,
    devices_of,
    largest_difference,
    one_number_a_row,
    rollouts_differ,
    train,
)
from tests.helpers.tasks import words
from textenv import exact

pytestmark = pytest.mark.usefixtures(one_number_a_row.__name__)
SETTINGS: dict[str, dict[str, Any]] = {
    "micro-batches": {"micro_batch_size": 3},
    "schedules": {"lr_schedule": "cosine", "lr_warmup": 2},
    "target of the KL": {"kl_target": 0.1},
    "k3 in the loss": {"kl_in": "loss"},
    "the exact KL in the loss": {"kl_in": "loss", "kl_loss": "exact"},
    "corrected sampler": {"sampler_correction": "truncate", "sampler_level": "prefix"},
    "groups": {"num_generations": 4},
}
OF_AGENTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo's minibatches": (PPO, {"batch_size": 8, "n_epochs": 2, "target_kl": 0.5}),
    "grpo without scaling": (GRPO, {"scale_rewards": False}),
    "reinforce without a baseline": (REINFORCE, {"baseline": None}),
}


def test_a_rollout_is_that_of_the_cpu() -> None:
    """Tokens, log-probabilities, values, rewards, masks. Control: another seed gives another one."""
    env = task()
    policy = random_policy(env, scale=0.1).float()
    moved = copy.deepcopy(policy).to(DEVICE)
    expected, found, other = (
        collect(env, each, 32, generator=new_generator(each.device, seed))
        for each, seed in ((policy, 0), (moved, 0), (moved, 1))
    )
    assert {x.device.type for x in vars(found).values() if isinstance(x, torch.Tensor)} == {DEVICE}
    assert rollouts_differ(found, expected) == [] and "input_ids" in rollouts_differ(other, expected)


@every_kind
def test_an_agent_learns_what_it_learns_on_the_cpu(kind: Any) -> None:
    """Weights and metrics after updates, with masks. Control: another seed leads to other weights."""
    env, logs = task(), []
    policy = random_policy(env, scale=0.1).float()
    for device in ("cpu", DEVICE):
        agent = kind(copy.deepcopy(policy).to(device), env, n_episodes=16, seed=0)
        log: list[dict[str, float]] = []
        agent.learn(
            10**9, callback=lambda agent, rollout, metrics, log=log: log.append(metrics) or agent.num_updates < 3
        )
        logs.append((agent, log))
    (here, expected), (there, found) = logs
    assert devices_of(there) == {DEVICE}
    assert largest_difference(there.policy, here.policy) < CLOSE < 1e-3 < largest_difference(there.policy, policy)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4, nan_ok=True)
    control = train(kind, env, policy, DEVICE, updates=3, seed=1)
    assert largest_difference(control.policy, here.policy) > 1e-4


@pytest.mark.parametrize("name", [*SETTINGS, *OF_AGENTS])
def test_settings_do_there_what_they_do_here(name: str) -> None:
    """Of all agents, on GRPO or PPO; and of some."""
    kind, settings = OF_AGENTS.get(name) or (PPO, SETTINGS[name])
    env = task()
    policy = random_policy(env, scale=0.1).float()
    here, there = (train(kind, env, policy, device, **settings) for device in ("cpu", DEVICE))
    assert largest_difference(there.policy, here.policy) < CLOSE


def test_adagrad_computes_the_same_policy() -> None:
    """Its first steps have the size of the step size also where the gradient is rounding, as for the keys' bias.

    So probabilities and values are compared, not weights.
    """
    env = task()
    policy = random_policy(env, scale=0.1).float()
    agents = [train(PPO, env, policy, device, optimizer="adagrad") for device in ("cpu", DEVICE)]
    rollouts = [collect(env, each.policy, 32, generator=new_generator(each.policy.device, 0)) for each in agents]
    assert rollouts_differ(rollouts[1], rollouts[0], close=1e-4) == []


def test_the_oracle_reads_a_policy_of_the_device() -> None:
    """J, its gradient and the distance to the optimum, by enumeration; and the KL of a bound policy, step by step."""
    env = task()
    policy = random_policy(env, scale=0.1)
    moved = copy.deepcopy(policy).to(DEVICE)
    here, there = (exact.evaluate(env, each) for each in (policy, moved))
    assert there.objective == pytest.approx(here.objective, abs=1e-9)
    gradients = [exact.policy_gradient(env, each) for each in (policy, moved)]
    assert len(gradients[0]) == len(gradients[1]) > 3
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name].cpu(), gradient, atol=1e-9)
    rewards = []
    for each in (policy, moved):
        bound = task(policy=each)
        bound.reset(seed=0)
        action = int(np.flatnonzero(bound.unwrapped.action_masks())[0])
        rewards.append(bound.step(action)[1])
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-6)


def test_masks_are_obeyed_and_tokens_drawn_without_waiting_for_multinomial() -> None:
    """A vocabulary of four tokens."""
    env = task()
    policy = random_policy(env, scale=0.1).float().to(DEVICE)
    with counting() as counts:
        rollout = collect(env, policy, 16, generator=new_generator(DEVICE, 0))
    assert rollout.action_mask is not None and bool(rollout.ref_log_probs[rollout.mask].isfinite().all())
    assert counts.by_kernel["multinomial"] == 0 < counts.by_kernel["searchsorted"]


def test_a_policy_of_the_device_needs_a_generator_of_the_device() -> None:
    """As on CUDA."""
    env = task()
    policy = random_policy(env, scale=0.1).float().to(DEVICE)
    with pytest.raises(RuntimeError, match="Expected a 'standin' device type for generator"):
        collect(env, policy, 16, generator=new_generator("cpu", 0))


def test_predictions_are_those_of_the_cpu() -> None:
    """Greedy and sampled, of single and batched observations."""
    arguments = words(4, max_new_tokens=3)
    envs = gym.make_vec("textenv/Text-v0", num_envs=5, **arguments)
    policy = random_policy(envs, scale=0.1).float()
    agents = [PPO(copy.deepcopy(policy).to(device), envs, seed=0) for device in ("cpu", DEVICE)]
    observation, _ = envs.reset(seed=0)
    single = {name: x[0] for name, x in observation.items()}
    for each in (observation, single):
        for deterministic in (True, False):
            here, there = (agent.predict(each, deterministic=deterministic)[0] for agent in agents)
            assert (here == there).all()


@every_kind
@pytest.mark.parametrize(("start", "end"), [("cpu", DEVICE), (DEVICE, "cpu"), (DEVICE, DEVICE)])
def test_an_agent_saved_on_one_device_resumes_on_another(kind: Any, start: str, end: str, tmp_path: Path) -> None:
    """Two updates, saved, loaded, and two more, are four: bit for bit the generator where the device is the same.

    A generator's state fits one type of device, so the others draw other numbers from there on.
    """
    env = task()
    policy = random_policy(env, scale=0.1).float()
    agent = train(kind, env, policy, start)
    agent.save(tmp_path)
    loaded: Agent = kind.load(tmp_path, env=env, device=end)
    assert devices_of(loaded) == {end} and loaded.generator.device.type == end
    assert largest_difference(loaded.policy, agent.policy) == 0
    assert loaded.num_updates == 2
    loaded.learn(10**9, callback=lambda agent, *_: agent.num_updates < 4, reset_num_timesteps=False)
    whole = train(kind, env, policy, start, updates=4)
    same = largest_difference(loaded.policy, whole.policy) < CLOSE
    assert same == (start == end) and devices_of(loaded) == {end}


def test_a_checkpoint_of_the_device_is_a_hugging_face_checkpoint(tmp_path: Path) -> None:
    """Loaded on the CPU it computes what the policy computes on the device."""
    env = task()
    agent = train(PPO, env, random_policy(env, scale=0.1).float(), DEVICE)
    agent.save(tmp_path)
    policy = TransformerPolicy.from_pretrained(tmp_path)
    rollout = collect(env, agent.policy, 8, generator=new_generator(DEVICE, 0))
    assert policy.device.type == "cpu" and largest_difference(agent.policy, policy) == 0
    with torch.no_grad():
        evaluation = policy.evaluate_actions(
            rollout.input_ids.cpu(), rollout.attention_mask.cpu(), rollout.num_tokens, rollout.action_mask.cpu()
        )
    mask = rollout.mask.cpu()
    assert torch.allclose(evaluation.log_probs[mask], rollout.log_probs.cpu()[mask], atol=CLOSE)
