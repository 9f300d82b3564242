"""Console output during a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from agents.sampling import Rollout

NUM_ROWS = 5  # completions of a batch that the table shows


def plain_console(**arguments: Any) -> Console:
    """A console without markup: brackets in prompts and completions are printed as they are."""
    return Console(markup=False, emoji=False, highlight=False, **arguments)


def completions_table(rollout: Rollout, num_updates: int) -> Table:
    """The first completions of a batch, with their scores and log-ratios to the reference."""
    table = Table(title=f"completions of update {num_updates}", show_lines=True)
    table.add_column("prompt", ratio=2)
    table.add_column("completion", ratio=3)
    for column in ("score", "log-ratio"):
        table.add_column(column, justify="right")
    first = rollout[:NUM_ROWS]
    for prompt, completion, score, kl in zip(first.prompts, first.completions, first.scores, first.kl, strict=True):
        table.add_row(str(prompt), str(completion), f"{score:.2f}", f"{kl:.2f}")
    return table
