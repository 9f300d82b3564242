"""Stable-Baselines3's PPO and sb3-contrib's MaskablePPO with a language model as the policy. Copy it and change it.

    pip install -e ".[experiments]"
    python -m experiments.examples.sb3_ppo
    python -m experiments.examples.sb3_ppo --algorithm PPO

The libraries are used as they are, with three extensions: a batched environment (`TextVecEnv`), a rollout buffer that
adds the policy's half of the KL to the rewards, and a policy class with the trunk, output layer and value head of the
language model. The result is compared with the exact optimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import tyro
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

import textenv  # noqa: F401, registers the environments
from agents.policy import TransformerPolicy
from agents.sb3 import (
    CausalLMPolicy,
    KLDictRolloutBuffer,
    KLMaskableDictRolloutBuffer,
    MaskableCausalLMPolicy,
    TextVecEnv,
)
from textenv import exact


@dataclass
class Args:
    """Settings of the run."""

    env_id: str = "textenv/TajMahal-v0"
    """A registered id of an environment that can be enumerated."""
    algorithm: Literal["MaskablePPO", "PPO"] = "MaskablePPO"
    """MaskablePPO gets the action masks from the environment, PPO's policy from the observation."""
    total_timesteps: int = 50_000
    """Tokens to sample."""
    num_envs: int = 64
    """Number of parallel environments."""
    seed: int = 0
    """Seed of all random numbers."""


def train(args: Args) -> tuple[Any, float]:
    """Trains; returns the agent and its share of the way from the reference to the optimum."""
    maskable = args.algorithm == "MaskablePPO"
    inner = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode="SameStep")
    envs = TextVecEnv(inner, mask_in_observation=not maskable)
    algorithm: Any = MaskablePPO if maskable else PPO
    agent = algorithm(
        MaskableCausalLMPolicy if maskable else CausalLMPolicy,
        envs,
        n_steps=8,
        batch_size=8 * args.num_envs,
        n_epochs=4,
        learning_rate=1e-3,
        gamma=1.0,
        vf_coef=0.1,
        max_grad_norm=1.0,
        normalize_advantage=False,
        seed=args.seed,
        rollout_buffer_class=KLMaskableDictRolloutBuffer if maskable else KLDictRolloutBuffer,
        policy_kwargs={"language_model": TransformerPolicy.for_env(envs)},
        device="cpu",
    )
    agent.learn(args.total_timesteps)
    solution = exact.solve(envs)
    evaluation = exact.evaluate(solution.tree, agent.policy.features_extractor.language_model)
    return agent, solution.normalized_objective(evaluation.objective)


if __name__ == "__main__":
    trained, share = train(tyro.cli(Args))
    print(f"{type(trained).__name__}: {share:.1%} of the way from the reference to the exact optimum")
