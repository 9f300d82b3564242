"""Agents that learn to write, from scratch: one file an agent, each the one before plus what the lecture adds."""

from agents.actor_critic import ActorCritic
from agents.grpo import GRPO
from agents.policy import TransformerPolicy
from agents.ppo import PPO
from agents.reinforce import REINFORCE
from agents.rloo import RLOO
from agents.rollout import Rollout, collect

__all__ = ["GRPO", "PPO", "REINFORCE", "RLOO", "ActorCritic", "Rollout", "TransformerPolicy", "collect"]
