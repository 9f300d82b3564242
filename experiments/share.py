"""The share of the way from the reference to the optimum, (J - J_ref) / (J* - J_ref), and its standard error."""

from __future__ import annotations

import math

import numpy as np

from agents.files import JsonObject
from textenv import exact

Baselines = JsonObject  # see `Evaluator.baselines`


def normalized_objective(objective: float, baselines: Baselines) -> float | None:
    """(J - J_ref) / (J* - J_ref): 0 at the reference, 1 at the optimum.

    None where the optimum is not known, or equals the reference's objective.
    """
    reference, optimum = baselines["reference"], baselines["optimum"]
    if reference is None or optimum is None:
        return None
    share = exact.normalized_objective(objective, reference, optimum)
    return None if math.isnan(share) else share


def normalized_objective_stderr(share: float | None, stderr: float | None, baselines: Baselines) -> float | None:
    """The standard error of a share s of the way, by the delta method.

        sqrt(se(J)^2 + (1 - s)^2 se(J_ref)^2 + s^2 se(J*)^2 + 2 s (1 - s) cov(J_ref, J*)) / (J* - J_ref)

    Args:
        share: s.
        stderr: se(J), None where J is exact.
        baselines: J_ref and J* with their standard errors, and the covariance of the two.

    Returns:
        None where all three are exact, or there is no share.
    """
    reference, optimum = baselines["reference"], baselines["optimum"]
    errors = [stderr, baselines.get("reference_stderr"), baselines.get("optimum_stderr")]
    if share is None or reference is None or optimum is None or errors == [None, None, None]:
        return None
    variance = sum((weight * (error or 0.0)) ** 2 for weight, error in zip((1, 1 - share, share), errors, strict=True))
    variance += 2 * share * (1 - share) * (baselines.get("optimum_covariance") or 0.0)
    return math.sqrt(max(variance, 0.0)) / float(optimum - reference)


def tokens_to_reach(share: float, rows: list[dict[str, float]], baselines: Baselines) -> float | None:
    """Number of tokens at which the normalized objective first reaches `share`.

    It is interpolated linearly between evaluations. None where `share` is never reached, or the optimum is not known.
    """
    evaluations = [row for row in rows if "eval/objective" in row]
    tokens = [row["num_timesteps"] for row in evaluations]
    shares = [normalized_objective(row["eval/objective"], baselines) or 0.0 for row in evaluations]
    for i, reached in enumerate(shares):
        if reached >= share:
            return float(np.interp(share, shares[max(0, i - 1) : i + 1], tokens[max(0, i - 1) : i + 1]))
    return None


def describe_optimum(baselines: JsonObject) -> list[str]:
    """Sentences about an estimate of J*; none where it is exact or not known."""
    if baselines.get("optimum_stderr") is None:
        return []
    upper = baselines["optimum_upper"]
    text = (
        f"J* is estimated from {baselines['optimum_completions']:.0f} completions of the reference for each of "
        f"{baselines['optimum_prompts']:.0f} prompts: 95% interval [{baselines['optimum_low']:.3f}, "
        f"{baselines['optimum_high']:.3f}]{'' if upper is None else f', stochastic upper bound {upper:.3f}'}; "
        f"effective sample size of a prompt {baselines['least_effective_sample_size']:.1f} (least), "
        f"{baselines['median_effective_sample_size']:.1f} (median). It is too low rather than too high, so shares are "
        "too high rather than too low. Behind ± is a share's standard error: of J*, the reference and the evaluations."
    )
    if baselines["least_effective_sample_size"] < exact.ENOUGH:
        text += f" Below {exact.ENOUGH:.0f} effective samples J* is clearly too low: raise --optimum-completions."
    return [text]
