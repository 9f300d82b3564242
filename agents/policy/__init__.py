"""The policy: a causal language model with a value head."""

from agents.policy.adapters import ADAPTER
from agents.policy.categorical import random_sources
from agents.policy.compiler import check_compiler, cpp_compiler
from agents.policy.evaluation import ActionEvaluation, FullEvaluation
from agents.policy.saved_policy import STALE, write_policy
from agents.policy.transformer import TransformerPolicy

__all__ = [
    "ADAPTER",
    "STALE",
    "ActionEvaluation",
    "FullEvaluation",
    "TransformerPolicy",
    "check_compiler",
    "cpp_compiler",
    "random_sources",
    "write_policy",
]
