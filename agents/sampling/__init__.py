"""Sampling: completions of a policy, scored, as a `Rollout`."""

from agents.sampling.collection import collect
from agents.sampling.external import check_spaces, collect_external, is_external
from agents.sampling.generate import generate_sampler
from agents.sampling.graph import GraphSampler
from agents.sampling.loop import Generation, Sampler, new_generator, sample
from agents.sampling.reference import reference_distributions
from agents.sampling.rollout import Rollout
from agents.sampling.starts import sample_prompts, states_after

__all__ = [
    "Generation",
    "GraphSampler",
    "Rollout",
    "Sampler",
    "check_spaces",
    "collect",
    "collect_external",
    "generate_sampler",
    "is_external",
    "new_generator",
    "reference_distributions",
    "sample",
    "sample_prompts",
    "states_after",
]
