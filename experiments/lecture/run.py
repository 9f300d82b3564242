"""python -m experiments lecture: measures the claims in worker processes, prints tables, and writes figures."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch
from rich.console import Console
from transformers.utils import logging

from agents import files
from experiments.console import plain_console, progress_bar, show
from experiments.errors import Unfinished
from experiments.launch import Ended, Failure, Report, run_in_workers
from experiments.lecture.memo import Memo
from experiments.opening import opened
from experiments.ranges import check_flags
from textenv.data import printable

# In the order of the lecture. Each claim is a module of this package with `measure(memo) -> numbers` (what JSON can
# hold), `table(numbers)` and `figure(numbers)`. `memo(name, function)` calls the function, or returns what it returned
# in an earlier call of an interrupted command.
Claim = Literal[
    "log_derivative",
    "credit_variance",
    "credit_seen",
    "value_head",
    "old_samples",
    "clip",
    "reward_hacking",
    "which_kl",
    "gamma_lambda",
    "loss_directions",
    "other_samplers",
]
CLAIMS: tuple[Claim, ...] = get_args(Claim)
ALL = "numbers"  # the name of the piece that is a whole claim
LONG = (
    "loss_directions",
    "old_samples",
    "reward_hacking",
    "clip",
)  # started first, so that none of them runs alone at the end


@dataclass
class LectureConfig:
    """Measure the claims of the lecture on toys, beside their exact values."""

    claims: list[Claim] = field(default_factory=lambda: list(CLAIMS))
    """The claims to measure."""
    num_workers: int = 0
    """Number of workers, each with one thread; 0 means one per processor."""
    out: Path | None = None
    """The output folder; by default a new one under runs/."""
    resume: bool = False
    """Resume the run in --out: what was measured is not measured again. Begin it if there is none yet."""
    take_over: bool = False
    """With --out in use by a command on another host: use it nevertheless, since that command does not run any more."""
    accept_changes: bool = False
    """With --resume: resume with other claims too."""

    def __post_init__(self) -> None:
        check_flags(self)


def lecture(config: LectureConfig) -> Path:
    """Measures the claims, prints their tables, and writes `<claim>.json`, `<claim>.txt` and `<claim>.png`.

    Raises:
        Unfinished: a claim failed. The others were measured, and `measured/` has the pieces of all.
    """
    started = time.monotonic()
    console = plain_console(width=None if sys.stdout.isatty() else 120)
    with opened(config, "lecture") as folder:
        failures = _measure(config, folder)
        for claim in config.claims:
            if claim not in failures:
                numbers = _memo(folder, claim)(ALL, _module(claim).measure)
                _show(_module(claim), numbers, folder / claim, console)
        if failures:
            texts = (f"{claim}: {failure.text}" for claim, failure in failures.items())
            raise Unfinished(f"{len(failures)} of {len(config.claims)} claims failed. {' '.join(texts)}")
    workers = config.num_workers or os.cpu_count()
    console.print(
        f"took {time.monotonic() - started:.0f} s with {workers} workers; tables, figures and numbers: {folder}"
    )
    return folder


def _measure(config: LectureConfig, folder: Path) -> dict[str, Failure]:
    """Measures the claims whose numbers are not in the folder yet; returns the failures by claim."""
    missing: list[str] = [claim for claim in config.claims if _memo(folder, claim).read(ALL) is None]
    missing.sort(key=lambda claim: claim not in LONG)
    workers = max(1, min(config.num_workers or os.cpu_count() or 1, len(missing)))
    failures: dict[str, Failure] = {}
    unfinished = list(missing)
    with progress_bar(total=len(config.claims), initial=len(config.claims) - len(missing), unit="claim") as bar:
        show(bar, ", ".join(unfinished[:workers]))
        calls = [partial(_measure_one, claim, folder) for claim in missing]
        with contextlib.closing(run_in_workers(calls, workers, poll=1)) as events:
            for event in events:
                if isinstance(event, Ended):
                    claim = missing[event.call]
                    unfinished.remove(claim)
                    if event.failure is None:
                        bar.write(printable(event.result, lines=True))
                        bar.update()
                    else:
                        failures[claim] = event.failure
                        bar.write(
                            printable(f"{claim} failed: {event.failure.text}\n{event.failure.traceback}", lines=True)
                        )
                show(bar, ", ".join(unfinished[:workers]))
    return failures


def _measure_one(claim: str, folder: Path, report: Report) -> str:
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    started = time.monotonic()
    memo = _memo(folder, claim)
    memo(ALL, partial(_module(claim).measure, memo))
    return f"{claim}: {time.monotonic() - started:.0f} s"


def _memo(folder: Path, claim: str) -> Memo:
    return Memo(folder / "measured" / claim)


def _module(claim: str) -> ModuleType:
    return importlib.import_module(f"experiments.lecture.{claim}")


def _show(module: ModuleType, numbers: object, path: Path, console: Console) -> None:
    """Prints the table of a claim; writes its numbers, its table and its figure, which nothing reads to resume."""
    title = (module.__doc__ or "").splitlines()[0]
    text = io.StringIO()
    for printer in (console, plain_console(width=120, file=text)):
        printer.print(f"\n{title}\n")
        printer.print(module.table(numbers))
    files.write_text(path.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
    files.write_text(path.with_suffix(".txt"), text.getvalue())
    figure = module.figure(numbers)
    files.write_file(path.with_suffix(".png"), lambda new: figure.savefig(new, format="png", dpi=110))
