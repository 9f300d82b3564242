"""The tables of `rescore`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from experiments.console import score_text
from experiments.rescore.twice import FEWEST, Mean, PolicyScores, ScoredTwice, rank_correlation, rank_differences

ABOUT = (
    "±: standard error, of a trial over its completions, of an agent over its seeds. Rank correlation: Spearman's; of "
    "n completions under unrelated rewards it is 0 ± 1/sqrt(n - 1)."
)


def policies_table(rows: Sequence[PolicyScores], own: str, new: str) -> Table:
    """A row for each policy: mean scores under both rewards, and their rank correlation."""
    table = Table(title=f"the run's reward: {own}; the new one: {new}", caption=ABOUT)
    table.add_column("policy")
    for column in ("completions", "score", "new score", "rank correlation"):
        table.add_column(column, justify="right")
    for row in rows:
        correlation = "unknown" if row.correlation is None else f"{row.correlation:.2f}"
        table.add_row(row.name, str(row.num_completions), _text(row.own), _text(row.new), correlation)
    return table


def differences_table(scored: Sequence[ScoredTwice], count: int) -> Table | str:
    """The completions whose ranks under the two rewards differ most, among all policies; equal ones once."""
    rows = [(each.sampled.name, completion) for each in scored for completion in each.sampled.completions]
    own, new = (np.concatenate([getattr(each, name) for each in scored]) for name in ("own", "new"))
    if rank_correlation(own, new) is None:
        return f"No ranks to compare: fewer than {FEWEST} completions, or a reward that scores all of them alike."
    difference = np.nan_to_num(rank_differences(own, new))
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
