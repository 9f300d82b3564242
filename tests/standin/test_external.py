"""Environments of other libraries, and Stable-Baselines3's algorithms with our policies, on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO

from agents import PPO as OurPPO
from agents import REINFORCE
from agents.sampling import collect_external, new_generator
from agents.sb3 import CausalLMPolicy, KLMaskableDictRolloutBuffer, MaskableCausalLMPolicy
from experiments.stable_baselines import SB3A2C, SB3PPO, SB3MaskablePPO
from tests.helpers.policies import random_policy
from tests.helpers.sb3 import KL_BUFFER, TOY, vec
from tests.helpers.standin import DEVICE
from tests.helpers.standin.comparison import (
    CLOSE,
    DEVICES,
    devices_of,
    largest_difference,
    one_number_a_row,
    rollouts_differ,
    train,
)

pytestmark = pytest.mark.usefixtures(one_number_a_row.__name__)


class Foreign(gym.Env[Any, Any]):
    """An environment of textenv that does not look like one."""

    def __init__(self) -> None:
        self.inner: Any = gym.make("textenv/Toy-v0", **(TOY | {"kl_coef": 0.0})).unwrapped
        self.observation_space, self.action_space = self.inner.observation_space, gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed)[0], {"action_mask": np.array([0, 1, 1], dtype=np.int8)}

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = self.inner.step(action)
        return observation, reward, terminated, truncated, {}


@pytest.mark.parametrize("kind", [REINFORCE, OurPPO])
def test_an_external_environment_is_learned_there_as_here(kind: Any) -> None:
    """Rollouts with masks, and weights after updates. Control: another seed."""
    env = Foreign()
    policy = random_policy(gym.make("textenv/Toy-v0", **TOY), scale=0.1).float()
    settings = {"num_generations": 1, "baseline": "mean"} if kind is REINFORCE else {}
    agents = [train(kind, env, policy, device, **settings) for device in DEVICES]
    rollouts = [
        collect_external(env, agent.policy, 12, generator=new_generator(agent.policy.device, seed))
        for agent, seed in ((agents[0], 0), (agents[1], 0), (agents[1], 1))
    ]
    assert devices_of(agents[1]) == {DEVICE} and rollouts[1].action_mask is not None
    assert largest_difference(agents[1].policy, agents[0].policy) < CLOSE
    assert rollouts_differ(rollouts[1], rollouts[0], close=1e-4) == [] != rollouts_differ(rollouts[2], rollouts[0])


ALGORITHMS: dict[str, Any] = {
    "ppo": (PPO, CausalLMPolicy, KL_BUFFER | {"n_steps": 8}),
    "a2c": (A2C, CausalLMPolicy, KL_BUFFER | {"n_steps": 8}),
    "maskable ppo": (
        MaskablePPO,
        MaskableCausalLMPolicy,
        {"n_steps": 8, "rollout_buffer_class": KLMaskableDictRolloutBuffer},
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_policies_of_stable_baselines_train_there(name: str, tmp_path: Path) -> None:
    """The first log-probabilities are those of the CPU; weights move; what is saved there is loaded here.

    Stable-Baselines3 draws actions by torch.multinomial from the device's own generator: other ones than on the CPU.
    """
    algorithm, policy_class, settings = ALGORITHMS[name]
    envs = vec(**TOY)
    start = random_policy(envs).float()
    agents = [
        algorithm(policy_class, envs, seed=0, device=device, policy_kwargs={"language_model": start}, **settings)
        for device in DEVICES
    ]
    observation, masks = envs.reset(), {}
    logits = []
    for agent in agents:
        tensors, _ = agent.policy.obs_to_tensor(observation)
        with torch.no_grad():
            logits.append(agent.policy.get_distribution(tensors, **masks).distribution.logits.cpu())
    assert torch.allclose(logits[1], logits[0], atol=CLOSE)
    agent = agents[1].learn(64)
    assert {p.device.type for p in agent.policy.parameters()} == {DEVICE}
    before = {id(p) for p in start.parameters()}
    trained = agent.policy.features_extractor.language_model
    assert largest_difference(trained, start) > 1e-5 and not before & {id(p) for p in trained.parameters()}
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=envs, device="cpu")
    assert largest_difference(loaded.policy.features_extractor.language_model, trained) == 0
    action, _ = loaded.predict(observation, deterministic=True)
    assert (action == agent.predict(observation, deterministic=True)[0]).all()


@pytest.mark.parametrize("kind", [SB3PPO, SB3A2C, SB3MaskablePPO])
def test_the_agents_of_the_command_line_train_there(kind: Any, tmp_path: Path) -> None:
    """`sb3-ppo` and the others, saved and loaded."""
    env = gym.make_vec("textenv/Toy-v0", **TOY)
    policy = random_policy(env).float()
    agent = kind(policy.to(DEVICE), env, n_episodes=4, n_steps=8, seed=0).learn(64)
    assert agent.policy.device.type == DEVICE
    agent.save(str(tmp_path))
    for device in DEVICES:
        loaded = kind.load(str(tmp_path), env, device=device)
        assert loaded.policy.device.type == device and largest_difference(loaded.policy, agent.policy) == 0
        loaded.learn(32, reset_num_timesteps=False)
