"""python -m experiments check-reward: what can be said of a reward before a policy is trained on it."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.console import plain_console
from experiments.env_flags import EnvFlags
from experiments.errors import NotShown
from experiments.ranges import check_flags
from textenv.data import printable
from textenv.testing import Finding, RewardReport, check_reward

COLOURS = {"holds": "green", "look here": "yellow", "broken": "red"}
NUMERIC = 16  # characters of a cell: longer ones are texts, which may be broken into lines


@dataclass
class CheckRewardConfig(EnvFlags):
    """Check a reward before a policy is trained on it: its contract, its signal, its holes.

    Completions are sampled from the reference once. Each line of the report is "holds", "look here" or "broken", with
    the smallest example that shows it; the exit code is 1 where something is broken.
    """

    env: str = "textenv/Text-v0"
    """Registered id of the environment whose reward is checked."""
    num_completions: int = 64
    """Completions of each prompt, at least 8."""
    max_prompts: int = 16
    """Of more prompts so many are taken, evenly spread."""
    other_process: bool = True
    """Score in another process too, which takes seconds; a reward that starts something heavy may do without."""
    seed: int = 0
    """Seed of the completions."""

    def __post_init__(self) -> None:
        check_flags(self)


def check(config: CheckRewardConfig) -> None:
    """Prints the report.

    Raises:
        FlagError: the flags are refused.
        NotShown: something is broken.
    """
    report = check_reward(
        config.make_environments().train,
        num_completions=config.num_completions,
        max_prompts=config.max_prompts,
        other_process=config.other_process,
        seed=config.seed,
    )
    print_report(report, plain_console(width=None if sys.stdout.isatty() else 120))
    if report.broken:
        names = ", ".join(dict.fromkeys(_name(finding) for finding in report.broken))
        raise NotShown(f"{len(report.broken)} of {len(report.findings)} checks of the reward are broken: {names}.")


def print_report(report: RewardReport, console: Console) -> None:
    """Prints the findings and the tables, section by section."""
    for section in dict.fromkeys(finding.section for finding in report.findings):
        console.print(Text(f"\n{section}", style="bold"))
        for finding in report.findings:
            if finding.section == section:
                console.print(_line(finding))
        for table in report.tables:
            if table.section != section or not table.rows:
                continue
            shown = Table(title=table.title, title_justify="left")
            for name, cells in zip(table.columns, zip(*table.texts(), strict=True), strict=True):
                text = any(len(cell) > NUMERIC for cell in cells)
                shown.add_column(name, justify="left" if text else "right", overflow="fold")
            for row in table.texts():
                shown.add_row(*row)
            console.print(shown)


def _name(finding: Finding) -> str:
    """The name of the check, and of the reward that it is about."""
    return f"{finding.name} [{finding.function}]" if finding.function else finding.name


def _line(finding: Finding) -> Text:
    """A finding in one paragraph, its example below."""
    line = Text(f"{finding.verdict:<9} ", style=COLOURS[finding.verdict])
    line.append(printable(f" {_name(finding)}: {finding.text}"), style="default")
    if finding.example:
        line.append("\n    " + printable(finding.example), style="dim")
    return line
