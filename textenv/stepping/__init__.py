"""Stepping: how episodes in progress advance by one token.

`EpisodeBatch` steps any task on arrays. `SingleEpisode` is the case B = 1, with a fast path in Python numbers.
`TabulatedBatch` steps tasks whose every state was enumerated beforehand, by lookups.
"""

from textenv.stepping.batch import EpisodeBatch, StepResult
from textenv.stepping.single import SingleEpisode
from textenv.stepping.tabulated import TabulatedBatch, make_episodes

__all__ = ["EpisodeBatch", "SingleEpisode", "StepResult", "TabulatedBatch", "make_episodes"]
