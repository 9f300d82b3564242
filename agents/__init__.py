"""Policy gradient agents for text, from scratch: one file per agent, each adds one idea to the one before."""

from agents.actor_critic import ActorCritic
from agents.agent import Agent
from agents.checks import check_fit
from agents.errors import Diverged, TrainingWarning
from agents.format_version import FORMAT_VERSION, check_format, find_saved, read_saved
from agents.grpo import GRPO
from agents.named_code import import_module, import_named
from agents.path_consistency import PathConsistency
from agents.policy import TransformerPolicy
from agents.ppo import PPO
from agents.ranges import RANGES, check_fields, check_range, check_timesteps
from agents.reinforce import REINFORCE
from agents.rloo import RLOO
from agents.sampling import Rollout, collect

__all__ = [
    "FORMAT_VERSION",
    "GRPO",
    "PPO",
    "RANGES",
    "REINFORCE",
    "RLOO",
    "ActorCritic",
    "Agent",
    "Diverged",
    "PathConsistency",
    "Rollout",
    "TrainingWarning",
    "TransformerPolicy",
    "check_fields",
    "check_fit",
    "check_format",
    "check_range",
    "check_timesteps",
    "collect",
    "find_saved",
    "import_module",
    "import_named",
    "read_saved",
]
