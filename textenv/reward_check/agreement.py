"""Does a second reward agree, and what becomes of it where the first is optimised?"""

from __future__ import annotations

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.correlation import centred_ranks, correlation
from textenv.reward_check.findings import Cell, Finding, Table, Verdict, quoted
from textenv.reward_check.optimum import estimable_beta, fewest_effective, shift, weights_of_optimum
from textenv.reward_check.samples import Samples

FACTORS = (8.0, 4.0, 2.0, 1.0)  # of the smallest beta that is estimated
AGREES = 0.5
SURE, LIKELY = 3.0, 2.0  # standard errors, of what is broken and of what is to be looked at
ROUNDING = 1e-9  # of the second reward: means of equal numbers differ by less
PAIRS = 5


def check_agreement(samples: Samples, scores: Array, gold: Array) -> tuple[list[Finding], list[Table]]:
    """Compares a reward with a second one, the gold reward.

    Args:
        samples: the completions.
        scores: [K] of the reward.
        gold: [K] of the gold reward; nan where one of the two has none.
    """
    missing = np.isnan(gold) | np.isnan(scores)
    score, second = np.where(missing, np.nan, scores), np.where(missing, np.nan, gold)
    ranks = [centred_ranks(samples.by_prompt(values)) for values in (score, second)]
    within, table = correlation(*ranks), _pairs(samples, score, second, *ranks)
    verdict: Verdict = "holds" if within >= AGREES else "look here"
    rank = "there is none" if np.isnan(within) else f"{within:+.2f}"
    text = f"{rank} with the second reward within prompts, over {int((~missing).sum()):,} completions"
    example = ""
    if verdict != "holds" and table.rows:
        first = table.rows[0]
        example = f"{first[1]} has {first[2]:.3g} and {first[3]:.3g}, {first[4]} has {first[5]:.3g} and {first[6]:.3g}"
    found = [Finding("agreement", "rank correlation", verdict, text, example)]
    outcome, along = _along_beta(samples, score, second)
    return [*found, outcome], [along, table]


def _along_beta(samples: Samples, score: Array, gold: Array) -> tuple[Finding, Table]:
    """Both rewards under pi* of several beta: Gao, Schulman, Hilton 2023, arXiv:2210.10760.

    The smallest is the task's, or the smallest one that the completions can estimate if that is larger: below it the
    means are those of a few completions, whatever their standard error says.
    """
    task, least = samples.mdp.kl_coef, estimable_beta(samples, score)
    rows = [_under_optimum(samples, score, gold, factor * least) for factor in FACTORS]
    before, here, error = shift(samples, gold, weights_of_optimum(samples, score, least))
    largest = max(rows, key=lambda row: row[2])
    text = f"at beta {least:.3g} pi* has a second reward of {here:.3g} ± {error:.2g}, the reference {before:.3g}"
    rounding = ROUNDING * float(np.nanmax(np.abs(gold)))
    verdict: Verdict = "holds"
    if here < before - SURE * error - rounding:
        verdict, text = "broken", f"{text}: optimising the reward lowers it"
    elif largest[2] - here > LIKELY * float(np.hypot(error, largest[3])) + rounding:
        verdict = "look here"
        text += f", and {largest[2]:.3g} at beta {largest[0]:.3g}: it falls where more is optimised"
    shown: list[list[Cell]] = [list(row) for row in rows]
    if task < least:
        verdict = "look here" if verdict == "holds" else verdict
        text += f"; at the task's beta, {task:.3g}, it cannot be estimated from so few completions"
        effective = fewest_effective(samples, weights_of_optimum(samples, score, task))
        shown.append([task, None, None, None, effective])
    columns = ["beta", "score under pi*", "second reward under pi*", "± of it", "fewest effective completions"]
    table = Table("agreement", "both rewards under the optimum of the first", columns, shown)
    return Finding("agreement", "under the optimum", verdict, text), table


def _under_optimum(
    samples: Samples, score: Array, gold: Array, beta: float
) -> tuple[float, float, float, float, float]:
    """beta, the mean score under its pi*, that of the second reward with its standard error, effective completions."""
    weights = weights_of_optimum(samples, score, beta)
    _, second, stderr = shift(samples, gold, weights)
    return beta, shift(samples, score, weights)[1], second, stderr, fewest_effective(samples, weights)


def _pairs(samples: Samples, score: Array, gold: Array, score_ranks: Array, gold_ranks: Array) -> Table:
    """The pairs of completions of one prompt on which the two differ most: each prefers another one."""
    grids = [samples.by_prompt(values) for values in (score_ranks, gold_ranks)]
    size, found = grids[0].shape[1], list[tuple[float, int, int]]()
    for prompt in range(samples.num_prompts):
        first, second = (grid[prompt][:, None] - grid[prompt][None, :] for grid in grids)
        against = np.where((first > 0) & (second < 0), first * -second, 0.0)
        a, b = divmod(int(against.argmax()), size)
        if against[a, b] > 0:
            found.append((float(against[a, b]), prompt * size + a, prompt * size + b))
    texts, rows = samples.finished.completions, list[list[Cell]]()
    for _, a, b in sorted(found, reverse=True)[:PAIRS]:
        asked = quoted(str(samples.finished.prompts[a]), 40)
        pair = [(quoted(str(texts[row]), 100), float(score[row]), float(gold[row])) for row in (a, b)]
        rows.append([asked, *pair[0], *pair[1]])
    columns = ["prompt", "the reward prefers", "score", "second", "the second prefers", "score", "second"]
    return Table("agreement", "pairs on which they differ most", columns, rows)
