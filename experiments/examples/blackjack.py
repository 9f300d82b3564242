"""`agents.PPO` on an environment of another library: Gymnasium's Blackjack, as prompts of three tokens.

    pip install -e ".[agents]" tyro
    python -m experiments.examples.blackjack

An environment needs a `Dict(input_ids, attention_mask)` observation and a `Discrete` action. Here an ObservationWrapper
encodes the hand as tokens. Always sticking has a mean return of -0.17 per game, the best strategy about -0.05. Copy
this file and change it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from transformers import GPT2Config, GPT2LMHeadModel

from agents import PPO
from agents.policy import TransformerPolicy


@dataclass
class Args:
    """Settings of the run."""

    total_timesteps: int = 50_000
    """Environment steps."""
    seed: int = 0
    """Seed of all random numbers."""


class HandAsTokens(gym.ObservationWrapper[Any, Any, Any]):
    """Encodes (player's sum, dealer's card, usable ace) as three tokens with disjoint ids."""

    FIRST_IDS = np.array([0, 32, 43])
    VOCAB_SIZE = 45

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        ids = spaces.MultiDiscrete(np.full(3, self.VOCAB_SIZE))
        self.observation_space = spaces.Dict(input_ids=ids, attention_mask=spaces.MultiBinary(3))

    def observation(self, observation: Any) -> dict[str, Any]:
        """Returns the tokens, without padding."""
        ids = self.FIRST_IDS + np.array(observation, dtype=np.int64)
        return {"input_ids": ids, "attention_mask": np.ones(3, dtype=np.int8)}


def train(args: Args) -> tuple[PPO, list[float]]:
    """Trains; returns the agent and the mean return of the games of each update."""
    env = HandAsTokens(gym.make("Blackjack-v1"))
    torch.manual_seed(args.seed)  # the initial weights of the network
    shape = GPT2Config(
        vocab_size=HandAsTokens.VOCAB_SIZE,
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    policy = TransformerPolicy(GPT2LMHeadModel(shape), vocab_size=2)  # the first two tokens: stick, hit
    agent = PPO(policy, env, learning_rate=2e-3, n_episodes=256, seed=args.seed)
    returns: list[float] = []
    agent.learn(args.total_timesteps, lambda agent, rollout, metrics: returns.append(metrics["objective/scores"]))
    return agent, returns


if __name__ == "__main__":
    _, means = train(tyro.cli(Args))
    for i in range(0, len(means), max(1, len(means) // 10)):
        print(f"update {i}: mean return {means[i]:.3f}")
    print(f"last twenty updates: mean return {np.mean(means[-20:]):.3f}")
