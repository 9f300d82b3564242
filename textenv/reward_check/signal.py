"""Is there something to learn from: how the scores are spread, and what the optimum and best of n make of them?"""

from __future__ import annotations

import warnings

import numpy as np

from textenv.exact import MIN_EFFECTIVE_SAMPLES, optimum_from_scores
from textenv.reward_check.calls import Array
from textenv.reward_check.correlation import spread_within
from textenv.reward_check.findings import Finding, Table, Verdict, quoted
from textenv.reward_check.order_statistics import best_of_n, share_of_equal_groups
from textenv.reward_check.samples import Samples

GROUPS = (2, 4, 8, 16)  # completions of a group, as GRPO and RLOO have them
USUAL, EQUAL = 4, 0.5  # the size, and the share of equal groups with which half of the completions are for nothing
BETAS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the task's
BEST_OF = (1, 4, 16, 64)
OUTLIER = 10.0  # robust standard deviations from the median
SATURATED = 0.25  # of the completions have the largest score
FEW_VALUES = 10  # a score with fewer values is a class, and many have the largest
STILL = 0.01  # nats a completion: a policy there cannot be told from the reference
NOISY = 0.1  # of the variance within prompts


def check_signal(samples: Samples, scores: Array, noise: float) -> tuple[list[Finding], list[Table]]:
    """Checks the weighted sum of the scores.

    Args:
        samples: the completions.
        scores: [K], nan where a completion has none.
        noise: the standard deviation of a score that is computed again.
    """
    grid = samples.by_prompt(scores)
    within = spread_within(grid)
    found = [_spread(samples, scores, grid, within)]
    if within == 0:
        return found, []
    found += [_variance(grid), _noise(noise, within), _groups(grid), _ties(scores), _saturation(samples, scores)]
    found.append(_outliers(samples, scores))
    optimum, table = _optimum(samples, samples.by_prompt(scores + samples.shaping))
    return [*found, *optimum], [_by_prompt(samples, grid), _best_of(grid), *table]


def _finding(name: str, verdict: Verdict, text: str, example: str = "") -> Finding:
    return Finding("signal", name, verdict, text, example)


def _spread(samples: Samples, scores: Array, grid: Array, within: float) -> Finding:
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    text = f"mean {np.nanmean(scores):.3g}, from {low:.3g} to {high:.3g}, "
    text += f"standard deviation {np.nanstd(scores):.3g}, {within:.3g} within a prompt"
    if low == high:
        first = quoted(str(samples.finished.completions[0]))
        return _finding("spread", "broken", f"every completion has the score {low:.3g}: nothing can be learned", first)
    if within == 0:
        text = "all completions of a prompt have the same score: it depends on the prompt alone, nothing can be learned"
        prompt = quoted(str(samples.finished.prompts[0]))
        return _finding("spread", "broken", text, f"{prompt}: {grid[0, 0]:.3g} for all {grid.shape[1]} completions")
    return _finding("spread", "holds", text)


def _variance(grid: Array) -> Finding:
    """Components of variance: sigma_prompt^2 is the variance of the means minus what the completions add to it."""
    count = (~np.isnan(grid)).sum(axis=1)
    variances = np.nanvar(grid, axis=1, ddof=1)
    within = float(np.nanmean(variances))
    if len(grid) == 1:
        return _finding("variance", "holds", "there is one prompt: all of the variance is the completion's")
    between = max(float(np.nanvar(np.nanmean(grid, axis=1), ddof=1) - np.nanmean(variances / count)), 0.0)
    share = between / (between + within)
    text = f"{share:.0%} of the variance is the prompt's, {1 - share:.0%} the completion's"
    return _finding("variance", "look here" if share > 0.9 else "holds", text)


def _noise(noise: float, within: float) -> Finding:
    share = noise**2 / within**2
    text = f"{min(share, 1.0):.1%} of the variance within a prompt is noise: scores of the same completion differ"
    return _finding("noise", "look here" if share > NOISY else "holds", "no noise" if noise == 0 else text)


def _groups(grid: Array) -> Finding:
    sizes = [n for n in GROUPS if ((~np.isnan(grid)).sum(axis=1) >= n).any()]
    shares = {n: share_of_equal_groups(grid, n) for n in sizes}
    text = "groups whose scores are all the same, from which nothing is learned: "
    text += ", ".join(f"{share:.0%} of {n} completions" for n, share in shares.items())
    return _finding("groups", "look here" if shares.get(USUAL, 0.0) > EQUAL else "holds", text)


def _ties(scores: Array) -> Finding:
    values, counts = np.unique(scores[~np.isnan(scores)], return_counts=True)
    total = int(counts.sum())
    tied = float((counts * (counts - 1)).sum() / max(total * (total - 1), 1))
    text = f"{len(values):,} different scores of {total:,}; {tied:.1%} of the pairs are tied"
    if tied > 0.05:
        text += f", most at {values[counts.argmax()]:.3g} ({counts.max() / total:.0%} of the completions)"
    return _finding("ties", "look here" if tied > 0.5 else "holds", text)


def _saturation(samples: Samples, scores: Array) -> Finding:
    high = float(np.nanmax(scores))
    share = float((scores >= high - 1e-3 * np.nanstd(scores)).sum() / (~np.isnan(scores)).sum())
    few = len(np.unique(scores[~np.isnan(scores)])) < FEW_VALUES
    text = f"{share:.1%} of the completions have the largest score, {high:.4g}"
    saturated = share > SATURATED and not few
    example = quoted(str(samples.finished.completions[int(np.nanargmax(scores))])) if saturated else ""
    return _finding("saturation", "look here" if saturated else "holds", text, example)


def _outliers(samples: Samples, scores: Array) -> Finding:
    """Completions that are far from the median of their prompt."""
    medians = np.nanmedian(samples.by_prompt(scores), axis=1)
    distance = np.nan_to_num(np.abs(samples.by_prompt(scores) - medians[:, None])).ravel()
    deviation = 1.4826 * float(np.median(distance[~np.isnan(scores)]))  # of a normal distribution, its standard one
    unit = f"{OUTLIER:.0f} standard deviations from"
    if deviation == 0:  # a sparse reward: most completions have the median
        deviation = float(np.median(distance[distance > 0]))
        unit = f"{OUTLIER:.0f} times as far as others that differ from"
    far = distance > OUTLIER * deviation
    if not far.any():
        return _finding("outliers", "holds", "none")
    worst = int(distance.argmax())
    count = "1 completion is" if far.sum() == 1 else f"{int(far.sum()):,} completions are"
    text = f"{count} more than {unit} the median of the prompt, {medians[worst // (len(scores) // len(medians))]:.3g}"
    example = f"{quoted(str(samples.finished.completions[worst]))} has {scores[worst]:.4g}"
    return _finding("outliers", "look here", text, example)


def check_missing(samples: Samples, scores: Array) -> Finding:
    """Completions without a score, and prompts of which fewer than two have one: these are left out of the rest."""
    share, known = float(np.isnan(scores).mean()), (~np.isnan(samples.by_prompt(scores))).sum(axis=1)
    if not share:
        return _finding("none", "holds", "every completion has a score")
    skipped = samples.mdp.reward.on_error == "skip"
    text = f"{share:.1%} of the completions have no score, "
    text += "and are skipped" if skipped else "which stops a training: on_reward_error is not 'skip'"
    few = np.flatnonzero(known < 2)
    text += f"; {len(few)} of {len(known)} prompts have fewer than two with a score" if len(few) else ""
    row = int(np.flatnonzero(np.isnan(scores))[0])
    example = f"{quoted(str(samples.finished.completions[row]))} of {quoted(str(samples.finished.prompts[row]))}"
    return _finding("none", "look here" if skipped and len(few) < len(known) else "broken", text, example)


def _optimum(samples: Samples, rewards: Array) -> tuple[list[Finding], list[Table]]:
    """J*, what it is made of, for several beta."""
    beta = samples.mdp.kl_coef
    if beta == 0:
        text = "beta is 0: the optimum is the largest reward there is"
        return [_finding("optimum", "look here", text)], []
    rows, found = list[list[str | float | None]](), list[Finding]()
    for factor in BETAS:
        with warnings.catch_warnings():  # the effective sample size is in the table
            warnings.simplefilter("ignore", UserWarning)
            estimate = optimum_from_scores(rewards, factor * beta)
        least = float(estimate.effective_sample_size.min())
        rows.append([factor * beta, estimate.objective, estimate.stderr, estimate.kl, least])
        if factor == 1:
            text = f"J* = {estimate.objective:.3g} ± {estimate.stderr:.2g} at beta {beta:g}, from J = "
            text += f"{estimate.reference_objective:.3g} of the reference, at a KL of {estimate.kl:.3g}"
            few, still = least < MIN_EFFECTIVE_SAMPLES, estimate.kl < STILL
            text += f"; only {least:.1f} effective completions of a prompt: J* is larger" if few else ""
            text += "; the scores are so small beside beta that the optimum is nearly the reference" if still else ""
            found.append(_finding("optimum", "look here" if few or still else "holds", text))
    columns = ["beta", "J*", "standard error", "KL of pi*", "fewest effective completions"]
    return found, [Table("signal", "the optimum at several beta", columns, rows)]


def _best_of(grid: Array) -> Table:
    sizes = [n for n in BEST_OF if n <= grid.shape[1]]
    rows = [[n, best_of_n(grid, n), float(np.log(n) - (n - 1) / n)] for n in sizes]
    return Table("signal", "best of n completions", ["n", "score", "KL, at most"], rows)


def _by_prompt(samples: Samples, grid: Array) -> Table:
    """The prompts with the lowest and the highest mean."""
    means = np.nanmean(grid, axis=1)
    order = np.argsort(means)
    if len(order) > 6:
        order = np.concatenate([order[:3], order[-3:]])
    first = np.arange(len(grid)) * grid.shape[1]
    rows = [
        [quoted(str(samples.finished.prompts[first[p]]), 50), means[p], np.nanstd(grid[p]), np.nanmin(grid[p]),
         np.nanmax(grid[p])]
        for p in order.tolist()
    ]  # fmt: skip
    return Table("signal", "prompts with the lowest and highest mean", ["prompt", "mean", "std", "min", "max"], rows)
