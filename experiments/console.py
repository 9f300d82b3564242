"""Console output during a run, in which no text of others commands the terminal."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from agents.sampling import Rollout
from textenv.data import printable

NUM_ROWS = 5  # completions of a batch that the table shows
FORMAT = warnings.formatwarning
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class PlainConsole(Console):
    """A console for texts of others: brackets are no markup, and control characters are shown as escapes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **arguments)

    def render_str(self, text: str, **arguments: Any) -> Text:
        """Renders any string that is printed, also in a table."""
        return super().render_str(printable(text, lines=True), **arguments)


def plain_console(**arguments: object) -> Console:
    """A console for texts of others, see `PlainConsole`."""
    return PlainConsole(**arguments)


def progress_bar(**arguments: Any) -> tqdm:
    """A bar on stderr; in a file, where each redraw is kept, it is drawn once a minute. Arguments are those of tqdm."""
    seconds = 1.0 if sys.stderr.isatty() else 60.0
    return tqdm(mininterval=seconds, maxinterval=max(10.0, seconds), **arguments)


def show(bar: tqdm, text: str) -> None:
    """Shows a text behind a bar; in a file only where the bar is drawn anyway."""
    bar.set_postfix_str(text, refresh=sys.stderr.isatty())


def score_text(score: float | None) -> str:
    """A score with two decimals; "skipped" where the reward failed."""
    return "skipped" if score is None else f"{score:.2f}"


def completions_table(rollout: Rollout, num_updates: int) -> Table:
    """The first completions of a batch, with their scores and log-ratios to the reference."""
    table = Table(title=f"completions of update {num_updates}", show_lines=True)
    table.add_column("prompt", ratio=2)
    table.add_column("completion", ratio=3)
    for column in ("score", "log-ratio"):
        table.add_column(column, justify="right")
    first = rollout[:NUM_ROWS]
    numbers = zip(first.valid.tolist(), first.scores.tolist(), first.kl.tolist(), strict=True)
    for prompt, completion, (valid, score, kl) in zip(first.prompts, first.completions, numbers, strict=True):
        shown = (f"{score:.2f}", f"{kl:.2f}") if valid else ("skipped", "")
        table.add_row(str(prompt), str(completion), *shown)
    return table


def escape_logs_and_warnings() -> None:
    """Control characters in what libraries log, and in warnings, are shown as escapes from now on, in this process.

    transformers logs names that a model's files hold.
    """
    for handler in (*transformers_logging.get_logger().handlers, logging.lastResort):
        if handler is not None:
            handler.addFilter(_escape)
    warnings.formatwarning = _format_warning


def _escape(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(COLOURS.sub("", record.getMessage()), lines=True), ()
    return True


def _format_warning(*arguments: Any, **named: Any) -> str:
    return printable(FORMAT(*arguments, **named), lines=True)
