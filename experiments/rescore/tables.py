"""The tables of `rescore`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from experiments.console import score_text
from experiments.rescore.ranks import rank_differences
from experiments.rescore.twice import Mean, PolicyScores, ScoredTwice

FEWEST = 3  # completions whose ranks are compared
ABOUT = (
    "±: standard error, of a trial over its completions, of an agent over its seeds. Rank correlation: within prompts, "
    "over different completions; ±: its standard deviation under unrelated rewards, around 0 (more where many of the "
    "completions differ in a word). Unknown: too few different completions a prompt, or equal scores."
)


def policies_table(rows: Sequence[PolicyScores], own: str, new: str) -> Table:
    """A row for each policy: mean scores under both rewards, and their rank correlation, with what it is by chance."""
    table = Table(title=f"the run's reward: {own}; the new one: {new}", caption=ABOUT)
    table.add_column("policy")
    for column in ("completions", "different", "score", "new score", "rank correlation", "by chance"):
        table.add_column(column, justify="right")
    for row in rows:
        value, by_chance, distinct = row.ranks
        ranks = ("unknown", "") if value is None else (f"{value:.2f}", f"± {by_chance:.2f}")
        table.add_row(row.name, str(row.num_completions), str(distinct), _text(row.own), _text(row.new), *ranks)
    return table


def differences_table(scored: Sequence[ScoredTwice], count: int) -> Table | str:
    """The completions whose ranks under the two rewards differ most, among all policies; equal ones once."""
    rows = [(each.sampled.name, completion) for each in scored for completion in each.sampled.completions]
    own, new = (np.concatenate([getattr(each, name) for each in scored]) for name in ("own", "new"))
    difference = rank_differences(own, new)
    known = ~np.isnan(difference)
    if known.sum() < FEWEST or min(np.ptp(own[known]), np.ptp(new[known])) == 0:
        return f"No ranks to compare: fewer than {FEWEST} completions, or a reward that scores all of them alike."
    difference = np.nan_to_num(difference)
    if not difference.any():
        return "The two rewards rank all completions alike."
    table = Table(
        title="where they differ most",
        caption="rank: how much higher the new reward ranks it, in percent of all completions.",
    )
    for column in ("policy", "prompt", "completion", "score", "new score", "rank"):
        table.add_column(column, justify="left" if column in ("policy", "prompt", "completion") else "right")
    shown: set[tuple[str, str]] = set()
    for i in np.argsort(-np.abs(difference), kind="stable"):
        policy, each = rows[i]
        if len(shown) < count and difference[i] and (each.prompt, each.completion) not in shown:
            shown.add((each.prompt, each.completion))
            scores = (score_text(float(own[i])), score_text(float(new[i])), f"{difference[i]:+.0%}")
            table.add_row(policy, each.prompt, each.completion or "(nothing)", *scores)
    return table


def _text(mean: Mean) -> str:
    if math.isnan(mean.value):
        return "unknown"
    return f"{mean.value:.3f}" + ("" if math.isnan(mean.stderr) else f" ± {mean.stderr:.3f}")
