"""The optimum estimated from completions of the reference, where there are too many to enumerate.

    J*(x) = beta log Z(x),   Z(x) = E_{y ~ pi_ref} exp(r(x, y) / beta)
          ~ beta log 1/N sum_i w_i,   w_i = exp(r(x, y_i) / beta)

with r(x, y) the score and the shaping of a whole completion. By the delta method, with the effective sample size
ESS = (sum_i w_i)^2 / sum_i w_i^2,

    standard error  ~  beta sqrt(1 / ESS - 1 / N),      bias  ~  -beta / 2 (1 / ESS - 1 / N)

so J* is underestimated, and the share of the way that a policy has come is overestimated. Where the completions that
decide are rarer than 1 / N none may be among the N, and nothing that is computed from these shows it: not the standard
error, nor the effective sample size, which is then large. The interval covers J* less often than it states there. That
no logarithm of an
unbiased estimate is too large in the mean (Jensen) makes it a stochastic lower bound. One exact sample of pi* among the
N completions makes it a stochastic upper bound: E beta log 1/N (w* + sum_{i < N} w_i) >= J*(x) (Grosse et al. 2015,
arXiv:1511.02543; for language models Zhao et al. 2024, arXiv:2404.17546). Where the reward has a largest value M, exact
samples come from rejection: a completion of the reference is one with probability exp((r - M) / beta).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from textenv.arguments import check_count, check_kl_coef
from textenv.categorical import logsumexp
from textenv.exact.reference_samples import largest_reward, sample_rewards
from textenv.exact.solution import normalized_objective
from textenv.mdp import TextMDP
from textenv.state import Array
from textenv.unwrap import EnvLike, get_mdp

MIN_EFFECTIVE_SAMPLES = 10.0  # of a prompt: with fewer, bias and standard error are rough themselves


@dataclass(frozen=True)
class OptimumEstimate:
    """J* as estimated from completions of the reference.

    Attributes:
        objective: the estimate of J*, the mean over prompts.
        stderr: its standard error over completions; the prompts are given.
        interval: of `confidence`, by the normal approximation, with the bias added to its upper end. Where a prompt has
            fewer than 10 effective samples its upper end is `upper`.
        bias: the expected estimate minus J*, approximately; negative.
        reference_objective: the mean r(x, y), J of the reference.
        covariance: of the estimates of J* and of the reference's J, which are from the same completions.
        kl: KL(pi* || pi_ref), estimated from the same completions.
        weights: pi*(y|x) / pi_ref(y|x) of each completion, [P, N], scaled to add up to 1 for each prompt: the mean of
            anything under pi* is their weighted mean. 0 for completions that were skipped.
        effective_sample_size: of each prompt, [P]: 1 if one completion decides, N if all count alike.
        upper: a stochastic upper bound of J*; inf where the reward has no `max_score`.
    """

    objective: float
    stderr: float
    interval: tuple[float, float]
    bias: float
    reference_objective: float
    covariance: float
    kl: float
    weights: Array = field(repr=False)
    effective_sample_size: Array
    upper: float = math.inf

    def normalized_objective(self, objective: float) -> float:
        """The share of the way from the reference to the optimum; overestimated, as J* is underestimated."""
        return normalized_objective(objective, self.reference_objective, self.objective)


def estimate_optimum(env: EnvLike | TextMDP, num_completions: int = 1024, seed: int = 0) -> OptimumEstimate:
    """Estimates J* from completions of the reference: `num_completions` of each prompt, all sampled and scored here.

    Args:
        env: any environment of textenv. Its reward may have `max_score`, the largest score that it gives.
        num_completions: N >= 2.
        seed: of the completions.

    Raises:
        ValueError: beta is 0, or `num_completions` is no whole number of at least 2.

    Warns:
        UserWarning: a prompt has fewer than 10 effective samples.
    """
    mdp = get_mdp(env)
    _check_beta(mdp.kl_coef)  # before anything is sampled
    rewards = sample_rewards(mdp, check_count("num_completions", num_completions, 2), seed)
    estimate = _estimate(rewards, mdp.kl_coef, largest_reward(mdp), 0.95, seed)
    _warn_of_few(estimate)
    return estimate


def optimum_from_scores(
    scores: ArrayLike, kl_coef: float, *, max_score: float | None = None, confidence: float = 0.95, seed: int = 0
) -> OptimumEstimate:
    """Estimates J* from r(x, y) of completions of the reference.

    Args:
        scores: r(x, y), [P, N]: N >= 2 independent completions of each of P >= 1 prompts. nan is a completion that was
            skipped.
        kl_coef: beta > 0.
        max_score: the largest r(x, y) that there may be.
        confidence: of the interval.
        seed: of the exact samples, with `max_score`.

    Raises:
        ValueError: the scores are no such array, or exceed `max_score`; beta is 0, or too small or too large for
            float32; the confidence is not between 0 and 1.

    Warns:
        UserWarning: a prompt has fewer than 10 effective samples.
    """
    estimate = _estimate(scores, kl_coef, max_score, confidence, seed)
    _warn_of_few(estimate)
    return estimate


def _estimate(
    scores: ArrayLike, kl_coef: float, max_score: float | None, confidence: float, seed: int
) -> OptimumEstimate:
    rewards, beta = _check_scores(scores), _check_beta(kl_coef)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}.")
    if max_score is not None and (largest := float(np.nanmax(rewards))) > max_score + 1e-6:
        raise ValueError(f"max_score must be at least every reward, got {max_score!r} and {largest!r}.")
    valid = ~np.isnan(rewards)
    count = valid.sum(axis=1)
    logits = np.where(valid, rewards / beta, -np.inf)
    log_mean = logsumexp(logits) - np.log(count)
    effective = np.exp(2 * logsumexp(logits) - logsumexp(2 * logits))
    variance = np.maximum(1 / effective - 1 / count, 0.0) * count / (count - 1)
    objective, stderr = beta * float(log_mean.mean()), beta * float(np.sqrt(variance.sum())) / len(count)
    bias = -beta / 2 * float(variance.mean())
    upper = math.inf
    if max_score is not None:
        upper = _upper_bound(logits, beta, max_score, np.random.default_rng(seed))
    weights, known = np.exp(logits - logsumexp(logits)[:, None]), np.where(valid, rewards, 0.0)
    mean = known.sum(axis=1) / count
    # completion i moves the estimate of J*(x) by beta w_i / sum_j w_j, and that of J_ref(x) by r_i / N
    covariance = beta * ((weights * known).sum(axis=1) - mean) / (count - 1)
    width = NormalDist().inv_cdf((1 + confidence) / 2) * stderr
    return OptimumEstimate(
        objective=objective,
        stderr=stderr,
        interval=(
            objective - width,
            objective - bias + width if effective.min() >= MIN_EFFECTIVE_SAMPLES else max(upper, objective),
        ),
        bias=bias,
        reference_objective=float(mean.mean()),
        covariance=float(covariance.sum()) / len(count) ** 2,
        kl=(float((weights * known).sum(axis=1).mean()) - objective) / beta,
        weights=weights,
        effective_sample_size=effective,
        upper=upper,
    )


def _warn_of_few(estimate: OptimumEstimate) -> None:
    """Warns of prompts with few effective samples, at the line that called the public function."""
    effective = estimate.effective_sample_size
    few = int((effective < MIN_EFFECTIVE_SAMPLES).sum())
    if few:
        warnings.warn(
            f"{few} of {len(effective)} prompts have fewer than {MIN_EFFECTIVE_SAMPLES:.0f} effective samples, the "
            f"least {effective.min():.1f}: J* is underestimated, and the standard error is no measure of it. Take more "
            "completions.",
            stacklevel=3,
        )


def _upper_bound(logits: Array, beta: float, max_score: float, generator: np.random.Generator) -> float:
    """The mean over prompts of beta log of a mean with one exact sample of pi*; M where there is none.

    The sample is searched in the first half of the completions, the others are the second half.
    """
    half = logits.shape[1] // 2
    accepted = np.log(generator.random((len(logits), half))) < logits[:, :half] - max_score / beta
    found, first = accepted.any(axis=1), accepted.argmax(axis=1)
    others = logits[:, half:].copy()
    others[:, 0] = np.where(found, logits[np.arange(len(logits)), first], max_score / beta)
    bounds = beta * (logsumexp(others) - np.log(np.isfinite(others).sum(axis=1)))
    return float(np.where(found, bounds, max_score).mean())


def _check_beta(kl_coef: float) -> float:
    beta = check_kl_coef(kl_coef)
    if beta == 0:
        raise ValueError("kl_coef must be > 0 to estimate the optimum, got 0: J* is then the largest reward there is.")
    return beta


def _check_scores(scores: ArrayLike) -> Array:
    """Returns the scores as float64 [P, N]."""
    try:
        rewards = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"scores must be numbers [P, N], got {scores!r:.100}.") from error
    if rewards.ndim != 2 or rewards.shape[0] < 1 or rewards.shape[1] < 2:
        raise ValueError(
            f"scores must be [P, N], N >= 2 completions of each of P >= 1 prompts, got shape {rewards.shape}."
        )
    if np.isinf(rewards).any():
        raise ValueError("scores must be finite, or nan for completions that are skipped, got inf.")
    if ((~np.isnan(rewards)).sum(axis=1) < 2).any():
        raise ValueError("Every prompt must have two completions with a score, got one with fewer.")
    return rewards
