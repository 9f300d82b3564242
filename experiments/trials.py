"""Runs trials in workers, each on one thread, with one progress bar."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers.utils import logging

from agents import files
from agents.files import JsonObject
from experiments.agent_classes import short_name
from experiments.config import TrialConfig
from experiments.console import escape_logs_and_warnings, progress_bar
from experiments.launch import STOP_SECONDS, Call, Ended, Failure, Progress, Report, run_in_workers, run_on_ray
from experiments.lock import locked
from experiments.stopping import stops_later
from experiments.trial import run_trial
from textenv.data import printable

ERROR = "error.txt"
Launcher = Literal["local", "ray"]


def run_trials(
    trials: Sequence[TrialConfig],
    folders: Sequence[Path],
    initial: Path,
    num_workers: int = 0,
    launcher: Launcher = "local",
) -> list[Ended]:
    """Runs the trials in workers; one progress bar counts the tokens of all trials.

    Args:
        trials: their flags.
        folders: the output folder of each.
        initial: the folder of the policy to start from, and of the baselines.
        num_workers: workers; 0: one per processor.
        launcher: OS processes of this machine, or Ray.

    Returns:
        The result (a summary) or the failure of each trial.

    Raises:
        Stopped: a signal came, and the workers have ended.
    """
    ended: dict[int, Ended] = {}
    tokens = dict.fromkeys(range(len(trials)), 0)  # of each trial, so far
    calls = [
        partial(run_with_progress, trial, folder.resolve(), initial.resolve(), launcher == "ray")
        for trial, folder in zip(trials, folders, strict=True)
    ]
    total = sum(trial.total_timesteps for trial in trials)
    with (
        progress_bar(total=total, unit="tok", unit_scale=True, smoothing=0.05) as bar,
        stops_later(f"the workers' updates and checkpoints (at most {STOP_SECONDS:.0f} s)") as stop,
        contextlib.closing(
            _launch(calls, num_workers, launcher, trials[0].device, lambda: stop.number is not None)
        ) as events,
    ):
        for event in events:
            if isinstance(event, Progress):
                tokens[event.call] = event.value
                bar.update(min(sum(tokens.values()), bar.total) - bar.n)
            elif isinstance(event, Ended):
                ended[event.call] = event
                if stop.number is None:
                    bar.write(printable(_line(trials[event.call], event)))
                    keep_traceback(event.failure, folders[event.call])
    stop.stop_if_requested()
    return [ended[index] for index in range(len(trials))]


def keep_traceback(failure: Failure | None, folder: Path) -> None:
    """Writes the traceback of a failure to `error.txt` in a trial's folder; removes an earlier one."""
    with contextlib.suppress(files.StorageError):  # the failure may be that the disk is full
        files.remove(folder / ERROR)
        if failure is not None and failure.traceback:
            files.write_text(folder / ERROR, failure.traceback)


def _launch(
    calls: Sequence[Call], num_workers: int, launcher: Launcher, device: str, is_stopping: Callable[[], bool]
) -> Generator[Progress | Ended | None, None, None]:
    if launcher == "ray":
        gpus = int(device.startswith("cuda"))
        return run_on_ray(calls, num_workers, poll=0.3, is_stopping=is_stopping, num_gpus=gpus)
    workers = min(num_workers or os.cpu_count() or 1, len(calls))
    return run_in_workers(calls, workers, poll=0.3, is_stopping=is_stopping)


def run_with_progress(
    config: TrialConfig, folder: Path, initial: Path, take_over: bool, report_progress: Report
) -> JsonObject:
    """Runs a trial on one thread, and reports the tokens so far after each update.

    Args:
        config, folder, initial: see `run_trial`.
        take_over: see `locked`; True where a worker on another host may have been killed (Ray's).
        report_progress: gets the number of tokens so far. That is not an increment: a trial that is run again after a
            failure counts from its checkpoint.
    """
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    escape_logs_and_warnings()
    so_far = 0

    def report_tokens(tokens: int) -> None:
        nonlocal so_far
        so_far += tokens
        report_progress(so_far)

    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, take_over or config.take_over):
        return run_trial(config, folder, initial, report_tokens)


def trial_name(trial: TrialConfig) -> str:
    """Agent and seed."""
    return f"{short_name(trial.agent)} seed {trial.seed}"


def _line(trial: TrialConfig, ended: Ended) -> str:
    if ended.failure is not None:
        return f"{trial_name(trial)} failed: {ended.failure.text}"
    found = ended.result
    share = found["normalized_objective"]
    way = "" if share is None else f", {share:.1%} of the way to the optimum"
    return f"{trial_name(trial)}: J = {found['objective']:.3f} (score {found['score']:.3f}, KL {found['kl']:.2f}){way}"
