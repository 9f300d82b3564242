"""PPO in one file in the style of CleanRL, with `gym.make_vec` and without `agents`. Copy it and change it.

    pip install -e ".[experiments]"
    python -m experiments.examples.cleanrl_ppo
    python -m experiments.examples.cleanrl_ppo --autoreset-mode SameStep --total-timesteps 100000

Three things are particular to language. Masks: the logits of masked tokens are -inf, when sampling and in the update.
KL: the environment's reward includes `beta log pi_ref(a|s)`, this file adds `-beta log pi(a|s)`. Autoreset: in NextStep
mode the step after the end of an episode is a reset, which ignores the action. Such steps are excluded from the loss,
and no advantage crosses them. Values are not bootstrapped at the end of an episode: `terminated` is True also where a
completion reaches `max_new_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn

import textenv  # noqa: F401, registers the environments
from textenv import exact


@dataclass
class Args:
    """PPO's settings."""

    env_id: str = "textenv/TajMahal-v0"
    """A registered id."""
    autoreset_mode: Literal["NextStep", "SameStep"] = "NextStep"
    """Autoreset mode of the vector environment."""
    total_timesteps: int = 60_000
    """Steps over all environments, resets included; at least one update is made."""
    num_envs: int = 32
    """Number of parallel environments."""
    num_steps: int = 32
    """Steps per environment and update."""
    learning_rate: float = 2e-3
    """Adam's step size."""
    update_epochs: int = 4
    """Epochs on each batch."""
    gae_lambda: float = 0.95
    """lambda of GAE; gamma is 1."""
    clip_coef: float = 0.2
    """Clip range eps."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    seed: int = 0
    """Seed of all random numbers."""


class ActorCritic(nn.Module):
    """Concatenated token embeddings, two layers, and two heads."""

    def __init__(self, vocab_size: int, length: int, hidden: int = 128) -> None:
        super().__init__()
        self.padding = vocab_size
        self.embedding = nn.Embedding(vocab_size + 1, 16)
        self.trunk = nn.Sequential(nn.Linear(16 * length, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.actor, self.critic = nn.Linear(hidden, vocab_size), nn.Linear(hidden, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, action_mask: Tensor) -> tuple[Tensor, Tensor]:
        """log pi(.|s) [B, V], and V(s) [B]."""
        hidden = self.trunk(self.embedding(input_ids.where(attention_mask == 1, self.padding)).flatten(1))
        logits = self.actor(hidden).masked_fill(action_mask == 0, -torch.inf)
        return logits.log_softmax(dim=-1), self.critic(hidden).squeeze(1)

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """Logits [B, V] without masks, for `textenv.exact`, which applies the masks itself."""
        ids, attention = torch.as_tensor(input_ids), torch.as_tensor(attention_mask)
        return self(ids, attention, torch.ones(len(ids), self.padding))[0]  # type: ignore[no-any-return]


def train(args: Args) -> tuple[ActorCritic, list[float]]:
    """Trains; returns the network and the mean score of the completions that ended in each update."""
    torch.manual_seed(args.seed)
    envs: Any = gym.make_vec(args.env_id, num_envs=args.num_envs, autoreset_mode=args.autoreset_mode)
    kl_coef = envs.unwrapped.mdp.kl_coef
    net = ActorCritic(int(envs.single_action_space.n), envs.single_observation_space["input_ids"].shape[0])
    optimizer = torch.optim.Adam(net.parameters(), lr=args.learning_rate, eps=1e-5)
    observation, info = envs.reset(seed=args.seed)
    state = as_tensors(observation, info)
    ended = np.zeros(args.num_envs, dtype=bool)  # by the previous step
    history = []
    for _ in range(max(1, args.total_timesteps // (args.num_envs * args.num_steps))):
        steps: list[tuple[Any, ...]] = []
        scores: list[float] = []
        for _ in range(args.num_steps):
            with torch.no_grad():
                log_probs, value = net(*state)
            action = torch.multinomial(log_probs.exp(), 1)
            log_prob = log_probs.gather(1, action).squeeze(1)
            observation, reward, terminated, _, info = envs.step(action.squeeze(1).numpy())
            live = torch.as_tensor(~ended) if args.autoreset_mode == "NextStep" else torch.ones(args.num_envs) == 1
            rewards = torch.as_tensor(reward, dtype=torch.float32) - kl_coef * log_prob
            steps.append((*state, action, log_prob, value, rewards, torch.as_tensor(terminated), live))
            final = info.get("final_info", info)  # in SameStep mode the info of the ended episode is there
            scores += final["score"][final["_score"]].tolist() if "score" in final else []
            state, ended = as_tensors(observation, info), terminated
        with torch.no_grad():
            next_value = net(*state)[1]
        *inputs, actions, old_log_probs, values, rewards, ends, live = map(torch.stack, zip(*steps, strict=True))
        advantages = gae(rewards, values, ends, live, next_value, args.gae_lambda)
        returns = advantages + values
        for _ in range(args.update_epochs):
            log_probs, new_values = net(*(x[live] for x in inputs))
            ratio = (log_probs.gather(1, actions[live]).squeeze(1) - old_log_probs[live]).exp()
            clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
            policy_loss = -torch.minimum(ratio * advantages[live], clipped * advantages[live]).mean()
            value_loss = 0.5 * ((new_values - returns[live]) ** 2).mean()
            optimizer.zero_grad()
            (policy_loss + args.vf_coef * value_loss).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        history += [float(np.mean(scores))] if scores else []
    return net, history


def as_tensors(observation: dict[str, Any], info: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of the network: `input_ids`, `attention_mask`, `action_mask`."""
    arrays = (observation["input_ids"], observation["attention_mask"], info["action_mask"])
    return tuple(torch.tensor(array) for array in arrays)  # type: ignore[return-value]


def gae(rewards: Tensor, values: Tensor, ends: Tensor, live: Tensor, next_value: Tensor, gae_lambda: float) -> Tensor:
    """Advantages [T, N] with gamma = 1; they do not cross the end of an episode or a reset."""
    advantages, following = torch.zeros_like(rewards), torch.zeros_like(next_value)
    for t in reversed(range(len(rewards))):
        continues = (~ends[t] & live[t]).float()
        delta = rewards[t] + continues * next_value - values[t]
        following = delta + gae_lambda * continues * following
        advantages[t], next_value = following, values[t]
    return advantages


if __name__ == "__main__":
    args = tyro.cli(Args)
    network, means = train(args)
    for i in range(0, len(means), max(1, len(means) // 10)):
        print(f"update {i}: mean score {means[i]:.3f}")
    print(f"last update: mean score {means[-1]:.3f}" if means else "no completion has ended: raise num_steps")
    solution = exact.solve(gym.make(args.env_id))
    share = solution.normalized_objective(exact.evaluate(solution.tree, network).objective)
    print(f"{share:.1%} of the way from the reference to the exact optimum")
