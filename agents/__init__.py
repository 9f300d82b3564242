"""Agents that learn to write text, from scratch: one file an agent, each the one before plus what the lecture adds."""

from agents.actor_critic import ActorCritic
from agents.agent import Agent, check_range
from agents.grpo import GRPO
from agents.policy import TransformerPolicy
from agents.ppo import PPO
from agents.reinforce import REINFORCE
from agents.rloo import RLOO
from agents.sampling import Rollout, collect

__all__ = [
    "GRPO",
    "PPO",
    "REINFORCE",
    "RLOO",
    "ActorCritic",
    "Agent",
    "Rollout",
    "TransformerPolicy",
    "check_range",
    "collect",
]
