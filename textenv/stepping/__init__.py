"""Stepping: how episodes in progress advance by one token.

`EpisodeBatch.step` is the one step. It uses a `Backend`, which is chosen for the task.
"""

from textenv.stepping.batch import EpisodeBatch
from textenv.stepping.results import Info, StepResult

__all__ = ["EpisodeBatch", "Info", "StepResult"]
