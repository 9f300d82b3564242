"""rescore: what a run rewarded, seen by another reward.

    score(x, y)         the run's own reward, as it was saved
    new score(x, y)     --reward

A policy that was trained on one reward and has found its holes scores high on it and not on another one that is meant
to measure the same. A rank correlation (`ranks`) that is high before training and low after it says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from agents import FORMAT_VERSION, files
from experiments.console import plain_console
from experiments.env_flags import check_device, load_reward
from experiments.errors import FlagError
from experiments.ranges import check_flags
from experiments.rescore.kept import name_reward, read_run
from experiments.rescore.scoring import Rescorer
from experiments.rescore.tables import differences_table, policies_table
from experiments.rescore.twice import ScoredTwice, policies
from textenv.data import printable


@dataclass
class RescoreConfig:
    """Score the completions that a run has kept, before and after training, under another reward."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of `train` or `compare`. Nothing that it names is imported or loaded."""
    reward: list[str]
    """The other reward: one or more, as in `train`."""
    reward_weights: list[float] | None = None
    """Weight of each --reward in the score; by default 1."""
    top: int = 5
    """Completions to print on which the two rewards differ most."""
    out: Path | None = None
    """A JSON file for the numbers and every completion with both scores; by default nothing is written."""
    device: str = "cpu"
    """Device of classifiers: cpu, cuda, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights of classifiers."""
    trust_remote_code: bool = False
    """Run the Python code that classifiers bring; without it those that need code are refused."""

    def __post_init__(self) -> None:
        check_flags(self)


def rescore(config: RescoreConfig) -> list[ScoredTwice]:
    """Prints the mean scores of each policy under both rewards, and the completions on which they differ most.

    Returns:
        The completions of each policy with both scores.

    Raises:
        FlagError: flags that are invalid; the folder holds no run, or has kept no completion; or a reward needs a
            column that was not kept.
        DamagedFile: a file of the run was cut off or changed.
        RewardError: the reward failed.
    """
    if config.out is not None and config.out.is_dir():
        raise FlagError(f"--out must be a file, got the folder {str(config.out)!r}.")
    check_device(config.device)
    run = read_run(config.run)
    trust = config.trust_remote_code
    functions = [
        (name, load_reward(name, config.device, config.dtype, trust_remote_code=trust)) for name in config.reward
    ]
    rescorer = Rescorer(functions, config.reward_weights)
    sampled = [*([run.before] if run.before else []), *run.after]
    scored = [ScoredTwice.of(each, rescorer) for each in sampled]
    rows, console = policies(scored), plain_console(width=None if sys.stdout.isatty() else 120)
    console.print(policies_table(rows, run.reward, name_reward(config.reward, config.reward_weights)))
    console.print(differences_table(scored, config.top))
    for note in [*run.notes, *_unscored(scored)]:
        console.print(note)
    if config.out is not None:
        content = {
            "format_version": FORMAT_VERSION,
            "run": str(config.run),
            "own_reward": run.reward,
            "reward": config.reward,
            "reward_weights": config.reward_weights,
            "policies": [row.as_json() for row in rows],
            "completions": [completion for each in scored for completion in each.as_json()],
        }
        files.write_json(config.out, content)
        print(f"written to {printable(config.out)}")
    return scored


def _unscored(scored: Sequence[ScoredTwice]) -> list[str]:
    """A sentence about the completions for which the new reward returned None."""
    count, total = sum(int(np.isnan(each.new).sum()) for each in scored), sum(len(each.new) for each in scored)
    if not count:
        return []
    return [f"The new reward returned None for {count} of {total} completions; they are in no mean of it and no rank."]
