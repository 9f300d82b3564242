"""Sampling: completions of a policy, scored, as a `Rollout`."""

from agents.sampling.external import check_spaces, collect_episodes, is_foreign
from agents.sampling.generate import generate
from agents.sampling.graph import RecordedSampler
from agents.sampling.loop import Sampler, Written, new_generator, write
from agents.sampling.rollout import Rollout, collect, draw_prompts, states_after

__all__ = [
    "RecordedSampler",
    "Rollout",
    "Sampler",
    "Written",
    "check_spaces",
    "collect",
    "collect_episodes",
    "draw_prompts",
    "generate",
    "is_foreign",
    "new_generator",
    "states_after",
    "write",
]
