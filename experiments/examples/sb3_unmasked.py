"""Stable-Baselines3's PPO and DQN as they come, which know no masks. Copy it and change it.

    pip install -e ".[experiments]"
    python -m experiments.examples.sb3_unmasked
    python -m experiments.examples.sb3_unmasked --algorithm DQN --total-timesteps 60000

`TerminateIllegal` ends the episode where a masked token is taken, and `FlatTokens` makes the observation one
`MultiDiscrete`, which the libraries' networks one-hot. At first nearly every token is masked, and each legal one costs
`beta log pi_ref`: to break off at once would be the best that an agent finds. A potential of 0.25 for each token makes
longer beginnings better than shorter ones. It changes no completion's return (`potential_based`), so the optimum is the
task's; what an illegal end keeps of it must be less than the worst completion's return, hence `illegal_reward`.

Neither algorithm adds the policy's half of the KL. They maximise `score + beta log pi_ref`, whose best policy is
deterministic, and the share of the way that it reaches is below 1. PPO's entropy bonus keeps it exploring; it is no
substitute for the KL. The share is measured on the allowed tokens alone, as `textenv.exact` evaluates policies; beside
it is the share of completions that the agent ends by a masked token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env

import textenv  # noqa: F401, registers the environments
from textenv import exact
from textenv.shaping import potential_based
from textenv.wrappers import FlatTokens, TerminateIllegal


@dataclass
class Args:
    """Settings of the run."""

    env_id: str = "textenv/TajMahal-v0"
    """A registered id of an environment that can be enumerated."""
    algorithm: Literal["PPO", "DQN"] = "PPO"
    """PPO is measured as it samples, DQN greedily."""
    total_timesteps: int = 100_000
    """Tokens to sample."""
    illegal_reward: float = -5.0
    """Reward of a masked token."""
    seed: int = 0
    """Seed of all random numbers."""


def make_env(args: Args) -> Any:
    """One environment for an agent without masks; its space has the masked tokens too, so that DQN explores them."""
    width = gym.make(args.env_id).unwrapped.mdp.prompt_width  # type: ignore[attr-defined]
    length = potential_based(lambda input_ids, attention_mask: 0.25 * attention_mask[:, width:].sum(axis=1))
    env: Any = FlatTokens(TerminateIllegal(gym.make(args.env_id, shaping=[length]), args.illegal_reward))
    env.action_space = gym.spaces.Discrete(int(env.action_space.n))
    return env


def make_agent(args: Args) -> Any:
    """The algorithm with its own network and its own buffer."""
    common: dict[str, Any] = {"gamma": 1.0, "seed": args.seed, "device": "cpu"}
    if args.algorithm == "PPO":
        envs = make_vec_env(lambda: make_env(args), n_envs=16, seed=args.seed)
        settings: dict[str, Any] = {
            "learning_rate": 1e-3,
            "ent_coef": 0.3,
            "vf_coef": 0.1,
            "normalize_advantage": False,
        }
        return PPO("MlpPolicy", envs, n_steps=64, batch_size=256, n_epochs=4, **settings, **common)
    envs = make_vec_env(lambda: make_env(args), n_envs=1, seed=args.seed)
    exploration: dict[str, Any] = {"exploration_fraction": 0.8, "learning_starts": 1000, "target_update_interval": 500}
    settings = {"learning_rate": 1e-3, "train_freq": 4, "buffer_size": args.total_timesteps}
    return DQN("MlpPolicy", envs, **settings, **exploration, **common)


def next_token_logits(agent: Any, input_ids: Any, attention_mask: Any) -> torch.Tensor:
    """What `textenv.exact` evaluates: PPO's logits; or DQN's largest value at 0, all others far below."""
    tokens = np.where(np.asarray(attention_mask) == 1, input_ids, agent.action_space.n)  # as `FlatTokens` has them
    with torch.no_grad():
        observation = torch.as_tensor(tokens)
        if isinstance(agent, DQN):
            values: torch.Tensor = agent.q_net(observation).double()
            return 1e6 * (values - values.max(dim=1, keepdim=True).values)
        logits: torch.Tensor = agent.policy.get_distribution(observation).distribution.logits
        return logits


def train(args: Args) -> tuple[Any, float, float]:
    """Trains; returns the agent, its share of the way to the optimum, and how many of its completions are illegal."""
    agent = make_agent(args)
    agent.learn(args.total_timesteps)
    solution = exact.solve(gym.make(args.env_id))
    evaluation = exact.evaluate(solution.tree, lambda *sequence: next_token_logits(agent, *sequence))
    return agent, solution.normalized_objective(evaluation.objective), illegal_share(agent, args)


def illegal_share(agent: Any, args: Args, episodes: int = 200) -> float:
    """How many of the agent's completions end by a masked token."""
    env, illegal = make_env(args), 0
    for episode in range(episodes):
        observation, info = env.reset(seed=episode)
        terminated = False
        while not terminated:
            action, _ = agent.predict(observation, deterministic=isinstance(agent, DQN))
            observation, _, terminated, _, info = env.step(action)
        illegal += info["finish_reason"] == "illegal"
    return illegal / episodes


if __name__ == "__main__":
    trained, share, illegal = train(tyro.cli(Args))
    print(
        f"{type(trained).__name__}: {share:.1%} of the way from the reference to the exact optimum; "
        f"{illegal:.1%} of its completions end by a masked token"
    )
