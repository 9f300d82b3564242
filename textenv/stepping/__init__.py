"""Stepping: how episodes in progress advance by one token."""

from textenv.stepping.batch import EpisodeBatch, StepResult
from textenv.stepping.single import SingleEpisode
from textenv.stepping.tabulated import TabulatedBatch, make_episodes

__all__ = ["EpisodeBatch", "SingleEpisode", "StepResult", "TabulatedBatch", "make_episodes"]
