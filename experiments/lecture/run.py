"""python -m experiments lecture: measures the claims in worker processes, prints tables, and writes figures."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from tqdm import tqdm
from transformers.utils import logging

from experiments.console import plain_console
from experiments.errors import FlagError
from experiments.launch import resume_hint, run_in_workers
from experiments.run_folder import open_folder

# In the order of the lecture. Each claim is a module of this package with `measure() -> numbers` (what JSON can hold),
# `table(numbers)` and `figure(numbers)`.
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
]
CLAIMS: tuple[Claim, ...] = get_args(Claim)
LONG = ("old_samples", "reward_hacking", "clip")  # started first, so that none of them runs alone at the end


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
    """Resume the interrupted run in --out."""


def lecture(config: LectureConfig) -> Path:
    """Measures the claims, prints their tables, and writes `<claim>.json`, `<claim>.txt` and `<claim>.png`."""
    if config.num_workers < 0:
        raise FlagError(f"--num-workers must not be negative, got {config.num_workers}; 0 means one per processor.")
    if not config.claims or len(set(config.claims)) < len(config.claims):
        raise FlagError(f"--claims must be one or more, each once, got {config.claims}.")
    folder = open_folder(config, "lecture", time.strftime("%Y%m%d-%H%M%S"))
    started = time.monotonic()
    numbers = _measure(config, folder)
    console = plain_console(width=None if sys.stdout.isatty() else 120)
    for claim in config.claims:
        _show(_module(claim), numbers[claim], folder / claim, console)
    workers = config.num_workers or os.cpu_count()
    console.print(
        f"took {time.monotonic() - started:.0f} s with {workers} workers; tables, figures and numbers: {folder}"
    )
    return folder


def _measure(config: LectureConfig, folder: Path) -> dict[str, Any]:
    """Returns the numbers of every claim; measures those that are not in the folder yet."""
    missing = [claim for claim in config.claims if not (folder / f"{claim}.json").is_file()]
    missing.sort(key=lambda claim: claim not in LONG)
    workers = max(1, min(config.num_workers or os.cpu_count() or 1, len(missing)))
    unfinished = list(missing)
    with tqdm(total=len(config.claims), initial=len(config.claims) - len(missing), unit="claim") as bar:
        bar.set_postfix_str(", ".join(unfinished[:workers]))
        again = f"resume with the same flags, --out {folder} --resume"
        calls = [partial(_measure_one, claim, folder) for claim in missing]
        with resume_hint(bar, again), contextlib.closing(run_in_workers(calls, workers, poll=1)) as results:
            for result in results:
                if result is not None:
                    bar.write(result[1])
                    bar.update()
                    unfinished.remove(missing[result[0]])
                bar.set_postfix_str(", ".join(unfinished[:workers]))
    return {claim: json.loads((folder / f"{claim}.json").read_text()) for claim in config.claims}


def _measure_one(claim: str, folder: Path) -> str:
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    started = time.monotonic()
    numbers = _module(claim).measure()
    temporary = folder / f"{claim}.json.new"
    temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    os.replace(temporary, folder / f"{claim}.json")  # atomic
    return f"{claim}: {time.monotonic() - started:.0f} s"


def _module(claim: str) -> ModuleType:
    return importlib.import_module(f"experiments.lecture.{claim}")


def _show(module: ModuleType, numbers: Any, path: Path, console: Any) -> None:
    title = (module.__doc__ or "").splitlines()[0]
    with path.with_suffix(".txt").open("w") as file:
        for printer in (console, plain_console(width=120, file=file)):
            printer.print(f"\n{title}\n")
            printer.print(module.table(numbers))
    module.figure(numbers).savefig(path.with_suffix(".png"), dpi=110)
