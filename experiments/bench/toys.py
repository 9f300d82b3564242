"""Training on a toy: `agents.PPO` and Stable-Baselines3's, with the same tokens per update, epochs and minibatches.

    toy ppo                    `agents.PPO`; one forward pass covers all tokens of a completion
    toy sb3 ppo                SB3's PPO with the same transformer (`agents.sb3`), which encodes every state separately:
                               a token costs its whole prefix
    toy sb3 ppo, mlp           SB3's PPO with its own MLP, with as many parameters, on the flattened observation
    toy sb3 ppo, default mlp   the same with SB3's default of two layers of 64

The MLP is no language model; it is there because its speed is familiar to users. The transformer has random weights:
only speed is measured here, `experiments compare` measures what is learned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import PPO as StableBaselinesPPO
from stable_baselines3.common.logger import Logger
from transformers import GPT2Config, GPT2LMHeadModel

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from agents.sb3 import KLDictRolloutBuffer, TextVecEnv
from experiments.bench.protocol import Round, RoundResult
from experiments.bench.variants import rounds_of
from experiments.stable_baselines import SB3PPO
from textenv import TextVectorEnv, get_mdp


@dataclass(frozen=True)
class ToyWork:
    """An update: `steps` tokens in each of `envs` environments; `agents.PPO` samples whole completions instead."""

    vocab_size: int = 50
    max_new_tokens: int = 16
    envs: int = 64
    steps: int = 32
    epochs: int = 4
    minibatches: int = 4
    hidden_size: int = 64

    @property
    def tokens(self) -> int:
        """Tokens per update."""
        return self.envs * self.steps

    def environment(self) -> Any:
        """Creates the Toy-v0 task."""
        return gym.make("textenv/Toy-v0", vocab_size=self.vocab_size, max_new_tokens=self.max_new_tokens)

    def policy(self, env: Any) -> TransformerPolicy:
        """The transformer that `TransformerPolicy.for_env` builds for a toy, before it imitates the reference."""
        mdp = get_mdp(env)
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=self.vocab_size,
            n_embd=self.hidden_size,
            n_inner=2 * self.hidden_size,
            n_layer=2,
            n_head=4,
            n_positions=mdp.prompt_width + mdp.max_new_tokens,
            activation_function="relu",
            bos_token_id=None,
            eos_token_id=mdp.eos_token_ids,
        )
        return TransformerPolicy(GPT2LMHeadModel(config))


def own_ppo(work: ToyWork) -> Round:
    """`agents.PPO` on about `work.tokens` tokens: the completions that have them on average, in equal minibatches."""
    env = work.environment()
    policy = work.policy(env)
    rollout = collect(env, policy, 1024, generator=new_generator("cpu", 0), values=False)
    minibatch = max(1, round(work.tokens / rollout.mask.sum(dim=1).float().mean().item() / work.minibatches))
    settings: dict[str, Any] = {"learning_rate": 3e-4, "n_epochs": work.epochs, "batch_size": minibatch, "seed": 0}
    agent = PPO(policy, env, n_episodes=minibatch * work.minibatches, **settings)
    return rounds_of(agent, {"parameters": size(policy)})


def same_transformer(work: ToyWork) -> Round:
    """Stable-Baselines3's PPO with the same transformer."""
    env = work.environment()
    policy = work.policy(env)
    settings: dict[str, Any] = {"n_steps": work.steps, "n_epochs": work.epochs, "seed": 0}
    agent = SB3PPO(policy, env, n_episodes=work.envs, batch_size=work.tokens // work.minibatches, **settings)
    return sb3_rounds(agent.algorithm, size(policy))


def mlp(work: ToyWork, layers: Sequence[int] | None = None) -> Round:
    """Stable-Baselines3's PPO with its MLP; by default as wide as the transformer's number of parameters allows."""
    env = work.environment()
    if layers is None:
        limit, width = size(work.policy(env)), 1
        while size(_mlp(work, env, [width + 1, width + 1]).policy) <= limit:
            width += 1
        layers = [width, width]
    algorithm = _mlp(work, env, layers)
    return sb3_rounds(algorithm, size(algorithm.policy))


def _mlp(work: ToyWork, env: Any, layers: Sequence[int]) -> Any:
    envs = TextVecEnv(TextVectorEnv(get_mdp(env), work.envs, autoreset_mode="SameStep"))
    algorithm = StableBaselinesPPO(
        "MultiInputPolicy",  # flattens the observation, then applies MlpPolicy's network
        envs,
        n_steps=work.steps,
        n_epochs=work.epochs,
        batch_size=work.tokens // work.minibatches,
        gamma=1.0,
        rollout_buffer_class=KLDictRolloutBuffer,
        policy_kwargs={"net_arch": list(layers)},
        seed=0,
        device="cpu",
    )
    algorithm.set_logger(Logger(None, output_formats=[]))  # otherwise it creates log folders
    return algorithm


def sb3_rounds(algorithm: Any, parameters: float) -> Round:
    """One update per round; every step of every environment samples a token."""

    def run_round() -> RoundResult:
        before = algorithm.num_timesteps
        algorithm.learn(1, log_interval=None, reset_num_timesteps=False)
        return RoundResult(algorithm.num_timesteps - before, {}, {"parameters": parameters})

    return run_round


def size(module: Any) -> float:
    """The number of trained parameters."""
    return float(sum(parameter.numel() for parameter in module.parameters()))


TOYS: dict[str, Callable[[ToyWork], Round]] = {
    "toy ppo": own_ppo,
    "toy sb3 ppo": same_transformer,
    "toy sb3 ppo, mlp": mlp,
    "toy sb3 ppo, default mlp": lambda work: mlp(work, [64, 64]),
}
