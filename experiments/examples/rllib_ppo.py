"""RLlib's PPO (its new API stack) on textenv's environments. Copy it and change it.

    pip install -e ".[rllib]"      (in a virtual environment of its own: RLlib pins Gymnasium)
    python -m experiments.examples.rllib_ppo

The library is used as it is. The action mask is part of the observation (`MaskInObservation`), and the RLModule applies
it. A callback of the env runner, `on_sample_end`, adds the policy's half of the KL, `-beta log pi(a|s)`, to the
rewards. A learner connector would be too late: RLlib has by then added a step after each end, which would get a KL
term, too. gamma is 1 (RLlib's default is 0.99), and the KL to the behaviour policy is off. One thing cannot be turned
off: RLlib whitens advantages, added steps included. Values are not bootstrapped at the end of an episode: RLlib uses
`terminated`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune.registry import register_env
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
    """Number of parallel environments in each env runner."""
    num_env_runners: int = 0
    """Number of sampling processes; with 0 this process samples."""
    learning_rate: float = 2e-3
    """Adam's step size."""
    seed: int = 0
    """Seed of all random numbers."""


class TextModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """Concatenated token embeddings, two layers, two heads; masked tokens have logits of -inf."""

    def setup(self) -> None:
        """Builds the network for the spaces."""
        self.padding, hidden = int(self.action_space.n), 128
        length = self.observation_space["input_ids"].shape[0]
        self.embedding = nn.Embedding(self.padding + 1, 16)
        self.trunk = nn.Sequential(nn.Linear(16 * length, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.actor, self.critic = nn.Linear(hidden, self.padding), nn.Linear(hidden, 1)

    def features(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """The trunk's output, [B, hidden]."""
        ids = torch.as_tensor(input_ids).long().where(torch.as_tensor(attention_mask) == 1, self.padding)
        output: Tensor = self.trunk(self.embedding(ids).flatten(1))
        return output

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """The forward pass of exploration, inference and training."""
        obs = batch[Columns.OBS]
        logits = self.actor(self.features(obs["input_ids"], obs["attention_mask"]))
        return {Columns.ACTION_DIST_INPUTS: logits.masked_fill(obs["action_mask"] == 0, -torch.inf)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """V(s), [B]."""
        obs = batch[Columns.OBS]
        values: Tensor = self.critic(self.features(obs["input_ids"], obs["attention_mask"])).squeeze(1)
        return values

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """Logits [B, V] without masks, for `textenv.exact`, which applies the masks itself."""
        logits: Tensor = self.actor(self.features(input_ids, attention_mask))
        return logits


def add_policy_kl(samples: list[Any], kl_coef: float, **kwargs: Any) -> None:
    """A callback of the env runner: adds `- beta log pi(a|s)` to the reward of each token of the sampled episodes."""
    for episode in samples:
        log_probs = episode.get_extra_model_outputs(Columns.ACTION_LOGP)
        episode.set_rewards(new_data=episode.get_rewards() - kl_coef * np.asarray(log_probs))


def make_config(args: Args, kl_coef: float) -> Any:
    """Returns the settings of RLlib."""
    register_env("masked-text", lambda _: MaskInObservation(gym.make(args.env_id)))
    return (
        PPOConfig()
        .environment("masked-text")
        .env_runners(
            num_env_runners=args.num_env_runners,
            num_envs_per_env_runner=args.num_envs,
            batch_mode="complete_episodes",
        )
        .callbacks(on_sample_end=partial(add_policy_kl, kl_coef=kl_coef))
        .rl_module(rl_module_spec=RLModuleSpec(module_class=TextModule))
        .training(
            lr=args.learning_rate,
            gamma=1.0,
            lambda_=0.95,
            train_batch_size=1024,
            minibatch_size=1024,
            num_epochs=4,
            clip_param=0.2,
            vf_loss_coeff=0.1,
            grad_clip=1.0,
            use_kl_loss=False,
        )
        .debugging(seed=args.seed, log_level="ERROR")
    )


def train(args: Args) -> tuple[TextModule, float]:
    """Trains; returns the module and its share of the way from the reference to the optimum."""
    env: Any = gym.make(args.env_id)
    gym.logger.min_level = gym.logger.ERROR  # RLlib checks a float against a Box in each episode, which warns
    ray.init(include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    try:
        algorithm = make_config(args, env.unwrapped.mdp.kl_coef).build_algo()
        tokens = 0
        while tokens < args.total_timesteps:
            tokens = algorithm.train()["env_runners"]["num_env_steps_sampled_lifetime"]
        module = algorithm.get_module()
        solution = exact.solve(env)
        evaluation = exact.evaluate(solution.tree, module)
        algorithm.stop()
    finally:
        ray.shutdown()
    return module, solution.normalized_objective(evaluation.objective)


if __name__ == "__main__":
    _, share = train(tyro.cli(Args))
    print(f"RLlib's PPO: {share:.1%} of the way from the reference to the exact optimum")
