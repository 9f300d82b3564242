"""Rewards: scores of finished completions, with the signature of TRL's reward functions."""

from typing import TYPE_CHECKING

from textenv.rewards.calls import call_reward, score_tokens_of, without_score_tokens
from textenv.rewards.errors import RewardError, WrongSignature
from textenv.rewards.finished import FinishedCompletions
from textenv.rewards.lexicon import vader
from textenv.rewards.messages import completion_text
from textenv.rewards.training import TRAINER_ARGUMENTS, TrainerState, TrainingContext
from textenv.rewards.weighted import OnRewardError, RewardFunction, WeightedReward, scores_or_nan

if TYPE_CHECKING:
    from textenv.rewards.classifier import RewardModel

__all__ = [
    "TRAINER_ARGUMENTS",
    "FinishedCompletions",
    "OnRewardError",
    "RewardError",
    "RewardFunction",
    "RewardModel",
    "TrainerState",
    "TrainingContext",
    "WeightedReward",
    "WrongSignature",
    "call_reward",
    "completion_text",
    "score_tokens_of",
    "scores_or_nan",
    "vader",
    "without_score_tokens",
]


def __getattr__(name: str) -> object:
    """Imports `RewardModel` on first use: it needs torch, which the rest of this package does not."""
    if name == "RewardModel":
        from textenv.rewards.classifier import RewardModel

        return RewardModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
