"""Does a second reward agree, and what becomes of it where the first is optimised?"""

from __future__ import annotations

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.correlation import centred_ranks, correlation
from textenv.reward_check.findings import Cell, Finding, Table, Verdict, quoted
from textenv.reward_check.optimum import estimable_beta, shift, weights_of_optimum
from textenv.reward_check.samples import Samples

BETAS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25)  # of the task's
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
    known = np.isnan(gold) | np.isnan(scores)
    score, second = np.where(known, np.nan, scores), np.where(known, np.nan, gold)
    ranks = [centred_ranks(samples.by_prompt(values)) for values in (score, second)]
    within, table = correlation(*ranks), _pairs(samples, score, second, *ranks)
    verdict: Verdict = "holds" if within >= AGREES else "look here"
    rank = "there is none" if np.isnan(within) else f"{within:+.2f}"
    text = f"{rank} with the second reward within prompts, over {int((~known).sum()):,} completions"
    example = ""
    if verdict != "holds" and table.rows:
        first = table.rows[0]
        example = f"{first[1]} has {first[2]:.3g} and {first[3]:.3g}, {first[4]} has {first[5]:.3g} and {first[6]:.3g}"
    found = [Finding("agreement", "rank correlation", verdict, text, example)]
    outcome, along = _along_beta(samples, score, second)
    return [*found, outcome], [along, table]


def _along_beta(samples: Samples, score: Array, gold: Array) -> tuple[Finding, Table]:
    """Both rewards under pi* of several beta: Gao, Schulman, Hilton 2023, arXiv:2210.10760."""
    beta, rows = samples.mdp.kl_coef or estimable_beta(samples, score), list[list[Cell]]()
    filled = np.nan_to_num(gold)
    reference, errors = float(np.nanmean(gold)), list[float]()
    for factor in BETAS:
        weights = weights_of_optimum(samples, score, factor * beta)
        _, mean, _ = shift(samples, np.nan_to_num(score), weights)
        _, second, stderr = shift(samples, filled, weights)
        rows.append([factor * beta, mean, second, stderr])
        errors.append(stderr)
    at = BETAS.index(1.0)
    here = float(rows[at][2] or 0.0)
    most = int(np.argmax([float(row[2] or 0.0) for row in rows[: at + 1]]))  # where no more is optimised than here
    text = f"at beta {beta:.3g} pi* has a second reward of {here:.3g} ± {errors[at]:.2g}, the reference {reference:.3g}"
    best, rounding = float(rows[most][2] or 0.0), ROUNDING * float(np.nanmax(np.abs(gold)))
    verdict: Verdict = "holds"
    if here < reference - SURE * errors[at] - rounding:
        verdict, text = "broken", f"{text}: optimising the reward lowers it"
    elif best - here > LIKELY * float(np.hypot(errors[at], errors[most])) + rounding:
        verdict = "look here"
        text += f", and {best:.3g} at beta {rows[most][0]:.3g}: it falls where more is optimised"
    columns = ["beta", "score under pi*", "second reward under pi*", "± of it"]
    table = Table("agreement", "both rewards under the optimum of the first", columns, rows)
    return Finding("agreement", "under the optimum", verdict, text), table


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
