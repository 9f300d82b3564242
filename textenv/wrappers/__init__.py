"""Wrappers for agents that need another form of observations, masks or actions.

`FlatTokens` and `MaskInObservation` change the observation, `CompletionAction` makes whole completions the actions, and
`TerminateIllegal` (single and batched) is for agents without masks.
"""

from textenv.wrappers.completion_space import AnyString, CompletionSpace
from textenv.wrappers.completions import CompletionAction
from textenv.wrappers.observations import FlatTokens, MaskInObservation
from textenv.wrappers.terminate_illegal import TerminateIllegal, VectorTerminateIllegal

__all__ = [
    "AnyString",
    "CompletionAction",
    "CompletionSpace",
    "FlatTokens",
    "MaskInObservation",
    "TerminateIllegal",
    "VectorTerminateIllegal",
]
