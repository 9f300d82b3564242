"""What completions of the reference are worth without the KL, and the most that one can be."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import is_number
from textenv.mdp import TextMDP
from textenv.reference_samples import CHUNK, sample_reference
from textenv.unwrap import EnvLike, get_mdp


def sample_rewards(mdp: TextMDP, num_completions: int, seed: int) -> NDArray[np.float64]:
    """Samples completions of each prompt from the reference.

    Args:
        mdp: the task.
        num_completions: N, per prompt.
        seed: of the tokens.

    Returns:
        r(x, y), the score and the shaping of each whole completion, float64 [P, N]; nan where it has no score, with
        `on_reward_error="skip"`.
    """
    generator = np.random.default_rng(seed)
    rewards = np.empty((len(mdp.prompts.texts), num_completions))
    for prompt in range(len(rewards)):
        for first in range(0, num_completions, CHUNK):
            count = min(CHUNK, num_completions - first)
            rewards[prompt, first : first + count] = _of_prompt(mdp, prompt, count, generator)
    return rewards


def largest_reward(env: EnvLike | TextMDP) -> float | None:
    """The largest r(x, y) that there may be, from the `max_score` of the reward functions; None where it is unknown.

    Raises:
        ValueError: a `max_score` is no finite number.
    """
    mdp = get_mdp(env)
    functions, weights = mdp.reward.functions, mdp.reward.weights
    given = [getattr(function, "max_score", None) for function in functions]
    if mdp.shaping or min(weights) < 0 or None in given:
        return None
    bounds = list[float]()
    for function, weight, bound in zip(functions, weights, given, strict=True):
        if not is_number(bound) or not math.isfinite(bound):
            raise ValueError(f"max_score of a reward function must be a finite number, got {bound!r} of {function!r}.")
        bounds.append(weight * float(bound))
    if len(bounds) > 1:  # a function that does not apply adds 0
        bounds = [max(bound, 0.0) for bound in bounds]
    return sum(bounds)


def _of_prompt(mdp: TextMDP, prompt: int, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """r(x, y) of some completions of one prompt."""
    samples = sample_reference(mdp, np.full(count, prompt), generator)
    rewards: NDArray[np.float64] = mdp.reward.score(samples.finished, may_skip=True) + samples.shaping
    return rewards
