"""Tianshou 2's PPO on textenv's environments. Copy it and change it.

    pip install -e ".[tianshou]"      (in a virtual environment of its own: Tianshou requires pandas 2)
    python -m experiments.examples.tianshou_ppo

The library is used as it is. The action mask is part of the observation (`MaskInObservation`), because Tianshou only
uses the actor's logits. A step hook of the collector adds the policy's half of the KL, `-beta log pi(a|s)`, to the
reward before the step is stored in the buffer. gamma is 1 (Tianshou's default is 0.99), advantages are not whitened
and there is no entropy bonus (both are on by default). Values are not bootstrapped at the end of an episode: Tianshou
uses `terminated`, which is True at every end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from torch import Tensor, nn

import textenv  # noqa: F401, registers the environments
from textenv import exact
from textenv.wrappers import MaskInObservation


@dataclass
class Args:
    """Settings of the run."""

    env_id: str = "textenv/TajMahal-v0"
    """A registered id of an environment that can be enumerated."""
    total_timesteps: int = 60_000
    """Tokens to sample."""
    num_envs: int = 32
    """Number of parallel environments."""
    learning_rate: float = 2e-3
    """Adam's step size."""
    seed: int = 0
    """Seed of all random numbers."""


class TextNet(nn.Module):
    """Concatenated token embeddings, two layers, and an output layer."""

    def __init__(self, vocab_size: int, length: int, out: int, hidden: int = 128) -> None:
        super().__init__()
        self.padding = vocab_size
        self.embedding = nn.Embedding(vocab_size + 1, 16)
        layers = [nn.Linear(16 * length, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, out))

    def outputs(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """The outputs, [B, out]."""
        ids = torch.as_tensor(input_ids).where(torch.as_tensor(attention_mask) == 1, self.padding)
        output: Tensor = self.layers(self.embedding(ids).flatten(1))
        return output


class Actor(TextNet):
    """An actor with Tianshou's signature: logits of the next token, -inf where masked."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[Tensor, Any]:
        """Returns logits [B, V], and the unused state."""
        logits = self.outputs(obs.input_ids, obs.attention_mask)
        return logits.masked_fill(torch.as_tensor(obs.mask) == 0, -torch.inf), state

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """Logits [B, V] without masks, for `textenv.exact`, which applies the masks itself."""
        return self.outputs(input_ids, attention_mask)


class Critic(TextNet):
    """A critic with Tianshou's signature: V(s)."""

    def forward(self, obs: Any) -> Tensor:
        """V(s), [B, 1]."""
        return self.outputs(obs.input_ids, obs.attention_mask)


class AddPolicyKL:
    """A step hook of the collector: adds `- beta log pi(a|s)`, with the log-probability of the sampled token."""

    def __init__(self, kl_coef: float) -> None:
        self.kl_coef = kl_coef

    def __call__(self, action_batch: Any, rollout_batch: Any) -> None:
        """Adds it to the reward before the step is stored."""
        log_prob = action_batch.dist.log_prob(torch.as_tensor(rollout_batch.act))
        rollout_batch.rew = rollout_batch.rew - self.kl_coef * log_prob.detach().numpy()
        rollout_batch.info = Batch()  # its strings are None before the end, which Tianshou takes for NaN


def make(args: Args) -> tuple[PPO, Collector[Any], Any]:
    """Returns the algorithm, the collector that fills its buffer, and an environment for the exact solution."""
    torch.manual_seed(args.seed)
    np.random.seed(args.seed)  # noqa: NPY002, Tianshou shuffles minibatches with it
    env: Any = gym.make(args.env_id)
    mdp = env.unwrapped.mdp
    size = mdp.vocab_size, mdp.prompt_width + mdp.max_new_tokens
    actor = Actor(*size, out=mdp.vocab_size)
    algorithm = PPO(
        policy=DiscreteActorPolicy(actor=actor, action_space=env.action_space),
        critic=Critic(*size, out=1),
        optim=AdamOptimizerFactory(lr=args.learning_rate, eps=1e-5),
        gamma=1.0,
        vf_coef=0.1,
        ent_coef=0.0,
        max_grad_norm=1.0,
        advantage_normalization=False,
    )
    envs = DummyVectorEnv([lambda: MaskInObservation(gym.make(args.env_id), key="mask") for _ in range(args.num_envs)])
    envs.seed(args.seed)
    buffer = VectorReplayBuffer(64 * args.num_envs, args.num_envs)
    return algorithm, Collector(algorithm, envs, buffer, on_step_hook=AddPolicyKL(mdp.kl_coef)), env


def train(args: Args) -> tuple[PPO, float]:
    """Trains; returns the algorithm and its share of the way from the reference to the optimum."""
    algorithm, collector, env = make(args)
    collector.reset()
    steps = 32 * args.num_envs
    algorithm.run_training(
        OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=args.total_timesteps,
            collection_step_num_env_steps=steps,
            update_step_num_repetitions=4,
            batch_size=steps,
            verbose=False,
            show_progress=False,
        )
    )
    solution = exact.solve(env)
    evaluation = exact.evaluate(solution.tree, algorithm.policy.actor)
    return algorithm, solution.normalized_objective(evaluation.objective)


if __name__ == "__main__":
    _, share = train(tyro.cli(Args))
    print(f"Tianshou's PPO: {share:.1%} of the way from the reference to the exact optimum")
