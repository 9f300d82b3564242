"""What the optimum makes of a reward, before any policy is trained on it.

    E_{pi*} f  ~  1/P sum_x sum_i w_i f(x, y_i),    w_i ~ exp(r(x, y_i) / beta),  sum_i w_i = 1

from the same completions of the reference (`OptimumEstimate.weights`). A policy that is trained comes by the optima of
larger beta on its way to that of the task's beta, so what these have more of is what it does first.
"""

from __future__ import annotations

import warnings

import numpy as np

from textenv.exact import MIN_EFFECTIVE_SAMPLES, optimum_from_scores
from textenv.reward_check.calls import Array
from textenv.reward_check.samples import Samples

HALVINGS = 30  # of the interval in which beta is searched, on a logarithmic scale


def weights_of_optimum(samples: Samples, scores: Array, beta: float) -> Array:
    """pi*(y|x) / pi_ref(y|x) of each completion, scaled to a sum of 1 for each prompt, [K]; 0 where it has no score.

    With beta = 0 those of the best completions of each prompt.
    """
    rewards = samples.by_prompt(scores + samples.shaping)
    if beta == 0:
        best = rewards == np.nanmax(rewards, axis=1, keepdims=True)
        shares: Array = (best / best.sum(axis=1, keepdims=True)).ravel()
        return shares
    with warnings.catch_warnings():  # the effective sample size is in the report
        warnings.simplefilter("ignore", UserWarning)
        return optimum_from_scores(rewards, beta).weights.ravel()


def estimable_beta(samples: Samples, scores: Array) -> float:
    """The smallest beta, at least the task's, whose optimum the completions can estimate.

    Each prompt then has 10 effective completions, or half of those with a score if that is less: with fewer, the
    features of a single completion would be taken for those of the optimum. It is at least a thousandth of the largest
    range of a prompt's rewards: below that rounding decides which completion is the best.
    """
    least = np.minimum(MIN_EFFECTIVE_SAMPLES, (~np.isnan(samples.by_prompt(scores))).sum(axis=1) / 2)
    rewards = samples.by_prompt(scores + samples.shaping)
    spread = float((np.nanmax(rewards, axis=1) - np.nanmin(rewards, axis=1)).max())

    def enough(beta: float) -> bool:
        weights = samples.by_prompt(weights_of_optimum(samples, scores, beta))
        return bool((1 / (weights**2).sum(axis=1) >= least).all())

    low, high = max(samples.mdp.kl_coef, 1e-3 * spread), 1e2 * spread
    if low >= high or enough(low):
        return low
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def largest_gain(samples: Samples, part: Array) -> float:
    """By how much E part - beta KL can grow above the reference's, in units of the score; beta is the task's.

    It is what a policy gains that optimises a part of the score alone. With few effective completions it is
    underestimated.

    Args:
        samples: the completions.
        part: of each completion's score, [K]; nan where it has none.
    """
    grid = samples.by_prompt(part)
    if samples.mdp.kl_coef == 0:
        return float((np.nanmax(grid, axis=1) - np.nanmean(grid, axis=1)).mean())
    with warnings.catch_warnings():  # an order is made of it, and no statement
        warnings.simplefilter("ignore", UserWarning)
        estimate = optimum_from_scores(grid, samples.mdp.kl_coef)
    return estimate.objective - estimate.reference_objective


def fewest_effective(samples: Samples, weights: Array) -> float:
    """The effective completions, 1 / sum_i w_i^2, of the prompt that has the fewest."""
    return float((1 / (samples.by_prompt(weights) ** 2).sum(axis=1)).min())


def shift(samples: Samples, values: Array, weights: Array) -> tuple[float, float, float]:
    """The mean of a feature under the reference and under pi*, and the standard error of the latter.

    Each is the mean over prompts of what a prompt's completions have. The variance under pi* of a prompt is the
    unbiased one of its effective completions; with fewer than two it is taken to be that under the reference.

    Args:
        samples: the completions.
        values: [K], nan for completions without a score: both means leave them out.
        weights: of the completions under pi*, [K], 0 where there is no score.
    """
    grid, w = samples.by_prompt(values), samples.by_prompt(weights)
    before, variance = np.nanmean(grid, axis=1), np.nanvar(grid, axis=1)
    grid = np.where(np.isnan(grid), before[:, None], grid)
    under = (w * grid).sum(axis=1)
    square = (w**2).sum(axis=1)
    own = (w**2 * (grid - under[:, None]) ** 2).sum(axis=1) / np.maximum(1 - square, 0.5)
    variance = np.where(square > 0.5, square * variance, own)
    return float(before.mean()), float(under.mean()), float(np.sqrt(variance.sum())) / len(grid)
