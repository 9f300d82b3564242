"""A workbench for rewards: what can be said of one before a policy is trained on it. See `check_reward`."""

from textenv.reward_check.check import check_reward
from textenv.reward_check.findings import Finding, RewardReport, Table

__all__ = ["Finding", "RewardReport", "Table", "check_reward"]
