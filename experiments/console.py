"""What is shown while a run goes on."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from agents.sampling import Rollout

SHOWN = 5  # answers of a batch


def plain_console(**arguments: Any) -> Console:
    """A console that prints texts as they are: prompts and answers may hold brackets that are no markup."""
    return Console(markup=False, emoji=False, highlight=False, **arguments)


def completions_table(rollout: Rollout, num_updates: int) -> Table:
    """The first answers of a batch, with their scores and log-ratios to the reference."""
    table = Table(title=f"answers of update {num_updates}", show_lines=True)
    table.add_column("prompt", ratio=2)
    table.add_column("answer", ratio=3)
    for column in ("score", "log-ratio"):
        table.add_column(column, justify="right")
    some = rollout[:SHOWN]
    for prompt, answer, score, kl in zip(some.prompts, some.completions, some.scores, some.kl, strict=True):
        table.add_row(str(prompt), str(answer), f"{score:.2f}", f"{kl:.2f}")
    return table
