"""compare: trains agents x seeds on one environment and reports which agent is better, with intervals."""

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
    """Agents to compare: this project's, Stable-Baselines3's (sb3-ppo, sb3-a2c, maskable-ppo), or random, which is not
    trained. The reference and best-of-n are in every comparison."""
    best_of_n: int = 16
    """n of the baseline best-of-n: of n completions of the reference it keeps the one with the largest reward."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds; each agent is trained with each of them."""
    num_workers: int = 0
    """Number of workers, each runs a trial on one thread; 0: one per processor."""
    launcher: Literal["local", "ray"] = "local"
    """Where the trials run. local: in OS processes of this machine. ray: on a Ray cluster, which needs
    pip install -e ".[ray]"; with --device cuda each trial then has a GPU of its own, and the process that starts them
    needs one too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.launcher == "ray" and importlib.util.find_spec("ray") is None:
            raise FlagError('--launcher ray needs Ray: pip install -e ".[ray]".')

    @property
    def trained_agents(self) -> list[AgentName]:
        """The members of `agents` that are trained."""
        return [agent for agent in self.agents if agent != "random" and agent != "best-of-n"]

    def trials(self) -> list[TrialConfig]:
        """One config per agent and seed."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(AgentFlags)}
        return [
            TrialConfig(**(shared | {"agent": agent, "seed": seed, "out": None, "resume": False}))
            for seed in self.seeds
            for agent in self.trained_agents
        ]


def compare(config: CompareConfig) -> Path:
    """Runs every trial, prints and writes the report, and returns the folder."""
    if config.num_workers < 0:
        raise FlagError(f"--num-workers must not be negative, got {config.num_workers}; 0 is one per processor.")
    if not config.trained_agents or not config.seeds:
        raise FlagError(f"compare needs one of --seeds, and one of --agents that is trained: {', '.join(AGENTS)}.")
    if config.best_of_n < 1:
        raise FlagError(f"--best-of-n must be at least 1, got {config.best_of_n}.")
    for name, values in (("--agents", config.agents), ("--seeds", config.seeds)):
        if len(set(values)) < len(values):
            raise FlagError(f"{name} must differ from each other, got {values}.")
    trials = config.trials()
    console = plain_console(width=None if sys.stdout.isatty() else 120)
    console.print("making the initial policy, which equals the reference ...")
    evaluator, folder, policy = prepare(config, f"compare-{config.env.split('/')[-1]}", trials)
    console.print(f"{config.env}: {', '.join(config.agents)} x seeds {config.seeds}, to {folder}")
    started = time.monotonic()
    if (solution := evaluator.solution) is not None:
        console.print(
            f"{solution.tree.num_completions:,} completions enumerated: "
            f"reference J = {solution.reference_objective:.3f}, optimum J* = {solution.objective:.3f}"
        )

    summaries = _run(config, trials, folder, folder / INITIAL)
    by_agent: Summaries = {name: [s for s in summaries if s["agent"] == name] for name in config.trained_agents}
    untrained = {f"best of {config.best_of_n}": best_of_n(evaluator, config.best_of_n)}
    if "random" in config.agents:
        untrained["random"] = evaluator.measure(random_policy(policy))
    before = sample_completions(evaluator.env, policy, sample_prompt_indices(evaluator.env))
    report(folder, by_agent, untrained, before, console)
    console.print(f"took {time.monotonic() - started:.0f} s; table, curves.png, samples.txt and every run: {folder}")
    return folder


def _run(config: CompareConfig, trials: list[TrialConfig], folder: Path, initial: Path) -> list[dict[str, Any]]:
    """Runs the trials in workers and returns their summaries; one progress bar counts the tokens of all trials."""
    summaries: dict[int, dict[str, Any]] = {}
    tokens = dict.fromkeys(range(len(trials)), 0)  # of each trial, so far
    with (
        ray_queue() if config.launcher == "ray" else worker_queue() as progress,
        tqdm(
            total=len(trials) * config.total_timesteps, unit="tok", unit_scale=True, smoothing=0.05, mininterval=1.0
        ) as bar,
    ):
        folders = [(folder / trial.agent / f"seed-{trial.seed}").resolve() for trial in trials]
        calls = [
            partial(run_with_progress, index, trial, own, initial.resolve(), progress)
            for index, (trial, own) in enumerate(zip(trials, folders, strict=True))
        ]
        hint = f"to resume from the last checkpoints, use the same flags with --out {folder} --resume"
        with resume_hint(bar, hint), contextlib.closing(_launch(config, calls)) as results:
            for ended in results:
                tokens |= dict(_drain(progress))
                bar.update(min(sum(tokens.values()), bar.total) - bar.n)
                if ended is not None:
                    index, summaries[index] = ended
                    bar.write(_summary_line(trials[index], summaries[index]))
    return [summaries[index] for index in range(len(trials))]


def _launch(config: CompareConfig, calls: list[Any]) -> Generator[tuple[int, Any] | None, None, None]:
    if config.launcher == "ray":
        workers = min(config.num_workers or ray_workers(), len(calls))
        return run_on_ray(calls, workers, poll=0.3, num_gpus=int(config.device.startswith("cuda")))
    return run_in_workers(calls, min(config.num_workers or os.cpu_count() or 1, len(calls)), poll=0.3)


def run_with_progress(index: int, config: TrialConfig, folder: Path, initial: Path, progress: Any) -> dict[str, Any]:
    """Runs a trial on one thread, and puts `(index, tokens so far)` into the queue `progress` after each update."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    so_far = 0

    def report_tokens(tokens: int) -> None:
        nonlocal so_far
        so_far += tokens
        progress.put((index, so_far))  # the total, not the increment: a trial that is run again counts from its start

    return run_trial(config, folder, initial, report_tokens)


def _drain(progress: Any) -> Iterator[tuple[int, int]]:
    while True:
        try:
            yield progress.get_nowait()
        except queue.Empty:
            return


def _summary_line(trial: TrialConfig, summary: dict[str, Any]) -> str:
    share = summary["normalized_objective"]
    way = "" if share is None else f", {share:.1%} of the way to the optimum"
    return (
        f"{trial.agent} seed {trial.seed}: J = {summary['objective']:.3f} (score {summary['score']:.3f}, "
        f"KL {summary['kl']:.2f}){way}"
    )
