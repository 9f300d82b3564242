"""compare: agents x seeds on one environment, side by side; which one is better, and how sure are we?"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import queue
import sys
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from transformers.utils import logging

from experiments.baselines import best_of_n, random_policy
from experiments.config import AGENTS, AgentFlags, AgentName, TrialConfig
from experiments.console import plain_console
from experiments.errors import FlagError
from experiments.evaluation import sample_completions
from experiments.launch import ray_queue, ray_workers, resume_hint, run_in_workers, run_on_ray, worker_queue
from experiments.report import Summaries, report
from experiments.trial import INITIAL, prepare, run_trial, sample_prompt_indices

BaselineName = Literal["random", "best-of-n"]


@dataclass
class CompareConfig(AgentFlags):
    """Train several agents with several seeds each and compare them."""

    agents: list[AgentName | BaselineName] = field(default_factory=lambda: ["reinforce", "actor_critic", "ppo"])
    """Which agents: ours, Stable-Baselines3's (sb3-ppo, sb3-a2c, maskable-ppo), or random, which learns nothing. The
    reference and best-of-n are in every comparison."""
    best_of_n: int = 16
    """n: answers of the reference of which best-of-n keeps the one that is paid best."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Which seeds."""
    num_workers: int = 0
    """Trials at once, each on one thread; 0 is one a processor."""
    launcher: Literal["local", "ray"] = "local"
    """Where the trials run: in processes here, or on a Ray cluster (pip install textenv[ray]), where with --device cuda
    each has a GPU of its own, and this process needs one too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.launcher == "ray" and importlib.util.find_spec("ray") is None:
            raise FlagError("--launcher ray needs Ray: pip install textenv[ray].")

    @property
    def learners(self) -> list[AgentName]:
        """Those of `agents` that are trained."""
        return [agent for agent in self.agents if agent != "random" and agent != "best-of-n"]

    def trials(self) -> list[TrialConfig]:
        """One config an agent and seed."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(AgentFlags)}
        return [
            TrialConfig(**(shared | {"agent": agent, "seed": seed, "out": None, "resume": False}))
            for seed in self.seeds
            for agent in self.learners
        ]


def compare(config: CompareConfig) -> Path:
    """Run every trial, then print and write the report. Returns the folder."""
    if config.num_workers < 0:
        raise FlagError(f"--num-workers must not be negative, got {config.num_workers}; 0 is one a processor.")
    if not config.learners or not config.seeds:
        raise FlagError(f"compare needs one of --seeds, and one of --agents that learns: {', '.join(AGENTS)}.")
    if config.best_of_n < 1:
        raise FlagError(f"--best-of-n must be at least 1, got {config.best_of_n}.")
    for name, values in (("--agents", config.agents), ("--seeds", config.seeds)):
        if len(set(values)) < len(values):
            raise FlagError(f"{name} must differ from each other, got {values}.")
    trials = config.trials()
    console = plain_console(width=None if sys.stdout.isatty() else 120)
    console.print("making the policy that all start from, at the reference ...")
    evaluator, folder, policy = prepare(config, f"compare-{config.env.split('/')[-1]}", trials)
    console.print(f"{config.env}: {', '.join(config.agents)} x seeds {config.seeds}, to {folder}")
    started = time.monotonic()
    if (solution := evaluator.solution) is not None:
        texts = f"{solution.tree.num_completions:,}"
        console.print(
            f"{texts} texts enumerated: reference J = {solution.reference_objective:.3f}, "
            f"optimum J* = {solution.objective:.3f}"
        )

    summaries = _run(config, trials, folder, folder / INITIAL)
    by_agent: Summaries = {name: [s for s in summaries if s["agent"] == name] for name in config.learners}
    untrained = {f"best of {config.best_of_n}": best_of_n(evaluator, config.best_of_n)}
    if "random" in config.agents:
        untrained["random"] = evaluator.measure(random_policy(policy))
    before = sample_completions(evaluator.env, policy, sample_prompt_indices(evaluator.env))
    report(folder, by_agent, untrained, before, console)
    console.print(f"took {time.monotonic() - started:.0f} s; table, curves.png, samples.txt and every run: {folder}")
    return folder


def _run(config: CompareConfig, trials: list[TrialConfig], folder: Path, initial: Path) -> list[dict[str, Any]]:
    """Every trial in a process of its own thread; one bar for the tokens of all of them."""
    summaries: dict[int, dict[str, Any]] = {}
    told = dict.fromkeys(range(len(trials)), 0)  # tokens of each trial
    with (
        ray_queue() if config.launcher == "ray" else worker_queue() as written,
        tqdm(
            total=len(trials) * config.total_timesteps, unit="tok", unit_scale=True, smoothing=0.05, mininterval=1.0
        ) as bar,
    ):
        folders = [(folder / trial.agent / f"seed-{trial.seed}").resolve() for trial in trials]
        calls = [
            partial(run_with_progress, index, trial, own, initial.resolve(), written)
            for index, (trial, own) in enumerate(zip(trials, folders, strict=True))
        ]
        again = f"go on from the last checkpoints with the same flags, --out {folder} --resume"
        with resume_hint(bar, again), contextlib.closing(_launched(config, calls)) as results:
            for ended in results:
                told |= dict(_drained(written))
                bar.update(min(sum(told.values()), bar.total) - bar.n)
                if ended is not None:
                    index, summaries[index] = ended
                    bar.write(_line(trials[index], summaries[index]))
    return [summaries[index] for index in range(len(trials))]


def _launched(config: CompareConfig, calls: list[Any]) -> Generator[tuple[int, Any] | None, None, None]:
    if config.launcher == "ray":
        workers = min(config.num_workers or ray_workers(), len(calls))
        return run_on_ray(calls, workers, poll=0.3, num_gpus=int(config.device.startswith("cuda")))
    return run_in_workers(calls, min(config.num_workers or os.cpu_count() or 1, len(calls)), poll=0.3)


def run_with_progress(index: int, config: TrialConfig, folder: Path, initial: Path, written: Any) -> dict[str, Any]:
    """Run a trial on one thread, and put `(index, tokens so far)` into the queue as it goes on."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    so_far = 0

    def progress(tokens: int) -> None:
        nonlocal so_far
        so_far += tokens
        written.put((index, so_far))  # not what is new: a trial that was killed begins to count again

    return run_trial(config, folder, initial, progress)


def _drained(written: Any) -> Iterator[tuple[int, int]]:
    while True:
        try:
            yield written.get_nowait()
        except queue.Empty:
            return


def _line(trial: TrialConfig, summary: dict[str, Any]) -> str:
    share = summary["normalized_objective"]
    way = "" if share is None else f", {share:.1%} of the way to the optimum"
    return (
        f"{trial.agent} seed {trial.seed}: J = {summary['objective']:.3f} (score {summary['score']:.3f}, "
        f"KL {summary['kl']:.2f}){way}"
    )
