"""The share of the way from the reference to the optimum, (J - J_ref) / (J* - J_ref), and its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    """Number of tokens at which the normalized objective first reaches `share`, see `reaches`."""
    evaluations = [row for row in rows if row.get("eval/objective") is not None]
    tokens = [row["num_timesteps"] for row in evaluations]
    return reaches(share, [row["eval/objective"] for row in evaluations], tokens, baselines)


def reaches(share: float, objectives: Sequence[float], places: Sequence[float], baselines: Baselines) -> float | None:
    """Where the normalized objective first reaches `share`, interpolated linearly between evaluations.

    Args:
        share: the share of the way.
        objectives: J at each evaluation.
        places: the tokens, or seconds, of each.
        baselines: J_ref and J*.

    Returns:
        None where `share` is never reached, or the optimum is not known.
    """
    shares = [normalized_objective(objective, baselines) or 0.0 for objective in objectives]
    for i, reached in enumerate(shares):
        if reached >= share:
            return float(np.interp(share, shares[max(0, i - 1) : i + 1], places[max(0, i - 1) : i + 1]))
    return None


def describe_baselines(baselines: JsonObject) -> list[str]:
    """Sentences about prompts that are not all of a task, and about an estimate of J*; none where all is exact."""
    found = list[str]()
    for own, where in ((baselines, ""), (baselines.get("held_out"), "On the prompts held out: ")):
        if own is not None:
            found += [where + text for text in (_describe_prompts(own), _describe_optimum(own)) if text]
    return found


def _describe_prompts(baselines: JsonObject) -> str:
    used, total = baselines.get("num_prompts"), baselines.get("all_prompts")
    both = baselines.get("trained_on")
    found = [] if not both else [f"{both:.0f} of these prompts are trained on too."]
    if used is not None and total is not None and used != total:
        found.insert(0, f"Policies are measured on {used:.0f} of {total:.0f} prompts (--max-eval-prompts).")
    return " ".join(found)


def _describe_optimum(baselines: JsonObject) -> str:
    if baselines.get("optimum_stderr") is None:
        return ""
    upper, least = baselines["optimum_upper"], baselines["least_effective_sample_size"]
    median = baselines["median_effective_sample_size"]
    sizes = f"effective sample size of a prompt {least:.1f} (least), {median:.1f} (median)"
    how = (
        f"J* is estimated from {baselines['optimum_completions']:.0f} completions of the reference for each of "
        f"{baselines['num_prompts']:.0f} prompts"
    )
    if least < exact.MIN_EFFECTIVE_SAMPLES:
        most = "" if upper is None else f", and at most about {max(upper, baselines['optimum']):.3f}"
        return (
            f"{how}. It is at least about {baselines['optimum']:.3f}{most}, and every share is too large: fewer than "
            f"{exact.MIN_EFFECTIVE_SAMPLES:.0f} effective completions decide ({sizes}). The ± of a share is no measure "
            "of that; raise --optimum-completions."
        )
    bound = "" if upper is None else f", stochastic upper bound {upper:.3f}"
    return (
        f"{how}: 95% interval [{baselines['optimum_low']:.3f}, {baselines['optimum_high']:.3f}]{bound}; {sizes}. It is "
        "biased downward, shares are biased upward. Behind ± is a share's standard error: of J*, the reference and the "
        "evaluations."
    )


def optimum_band(baselines: JsonObject) -> tuple[float, float] | None:
    """The interval of an estimate of J*; None where J* is exact, not known, or has no upper bound."""
    low, high = baselines.get("optimum_low"), baselines.get("optimum_high")
    return None if low is None or high is None else (low, high)
