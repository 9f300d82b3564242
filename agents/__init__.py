"""Agents that learn to write, from scratch: one file an agent, each the one before plus what the lecture adds."""

from agents.actor_critic import ActorCritic
from agents.policy import TransformerPolicy
from agents.ppo import PPO
from agents.reinforce import REINFORCE
from agents.rollout import Rollout, collect

__all__ = ["PPO", "REINFORCE", "ActorCritic", "Rollout", "TransformerPolicy", "collect"]
