"""Reward models trained on preference pairs."""

from experiments.reward_model.training import RewardModelConfig, reward_model

__all__ = ["RewardModelConfig", "reward_model"]
