"""compare: trains agents x seeds on one environment and reports which agent is better, with intervals."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents.files import JsonObject
from agents.policy import TransformerPolicy
from experiments.agent_classes import (
    AGENTS,
    METAVAR,
    Settings,
    check_distinct,
    complete_settings,
    find_agent,
    settings_key,
    short_name,
    trained_agents,
)
from experiments.baselines import best_of_n, random_policy
from experiments.checkpoints import BASELINES
from experiments.config import SHARED_FLAGS, AgentFlags, TrialConfig
from experiments.console import plain_console
from experiments.errors import FlagError, Unfinished
from experiments.evaluation import Evaluator, sample_completions
from experiments.held_out import Environments
from experiments.html_report import page_note
from experiments.opening import INITIAL, opened
from experiments.report import report
from experiments.report_rows import Summaries
from experiments.summary import read_baselines
from experiments.trial import make_environments, prepare, sample_prompt_indices
from experiments.trials import run_trials, trial_name


@dataclass
class CompareConfig(AgentFlags):
    """Train several agents with several seeds each and compare them.

    Flags of one agent begin with its name: `compare --agents ppo rloo --help` shows those of both too. `-H` explains
    every flag.
    """

    agents: Annotated[list[str], tyro.conf.arg(metavar=f"[{METAVAR}|random ...]")] = field(
        default_factory=lambda: ["reinforce", "actor_critic", "ppo"]
    )
    """Agents to compare: of this project, of Stable-Baselines3, of TRL (pip install -e ".[trl]"), module:Class, an
    agent of your own; or random, which is not trained. The reference and best-of-n are in every comparison."""
    optimum_completions: int = 512
    """Where the task is too large to enumerate: completions of the reference for each prompt, from which the optimum J*
    is estimated before the training, and best-of-n: at least n; 0: J* is not known."""
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
        for agent in self.trained_agents:
            find_agent(agent, "--agents")
        check_distinct(self.trained_agents, [*SHARED_FLAGS, *(f.name for f in dataclasses.fields(self))], "--agents")
        self.settings = complete_settings(self.settings, self.trained_agents)
        if self.launcher == "ray" and importlib.util.find_spec("ray") is None:
            raise FlagError('--launcher ray needs Ray: pip install -e ".[ray]".')

    @property
    def trained_agents(self) -> list[str]:
        """The members of `agents` that are trained."""
        return trained_agents(self)

    def trials(self) -> list[TrialConfig]:
        """One config per agent and seed."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(AgentFlags)}
        shared |= {"out": None, "resume": False}
        return [
            TrialConfig(**(shared | {"agent": agent, "seed": seed, "settings": self._settings_of(agent)}))
            for seed in self.seeds
            for agent in self.trained_agents
        ]

    def _settings_of(self, agent: str) -> Settings:
        key = settings_key(agent)
        return Settings({key: self.settings[key]})


def compare(config: CompareConfig) -> Path:
    """Runs every trial, prints and writes the report, and returns the folder.

    Raises:
        Unfinished: a trial failed. The others were run, and the report has what can be compared.
    """
    if not config.trained_agents or not config.seeds:
        raise FlagError(f"compare needs one of --seeds, and one of --agents that is trained: {', '.join(AGENTS)}.")
    trials = config.trials()
    environments = make_environments(config)
    with opened(config, f"compare-{config.env.split('/')[-1]}") as folder:
        _compare(config, trials, environments, folder)
    return folder


def _compare(config: CompareConfig, trials: list[TrialConfig], environments: Environments, folder: Path) -> None:
    console = plain_console(width=None if sys.stdout.isatty() else 120)
    console.print("making the initial policy, which equals the reference ...")
    evaluator, policy = prepare(config, environments, folder, trials, config.best_of_n)
    console.print(f"{config.env}: {', '.join(config.agents)} x seeds {config.seeds}, to {folder}")
    started = time.monotonic()
    if (solution := evaluator.solution) is not None:
        console.print(
            f"{solution.tree.num_completions:,} completions enumerated: "
            f"reference J = {solution.reference_objective:.3f}, optimum J* = {solution.objective:.3f}"
        )

    folders = [folder / short_name(trial.agent) / f"seed-{trial.seed}" for trial in trials]
    ended = run_trials(trials, folders, folder / INITIAL, config.num_workers, config.launcher)
    finished = [end.result for end in ended if end.failure is None]
    by_agent: Summaries = {
        short_name(name): [s for s in finished if s["agent"] == name] for name in config.trained_agents
    }
    by_agent = {name: summaries for name, summaries in by_agent.items() if summaries}
    if by_agent:
        untrained = _untrained(config, evaluator, policy, read_baselines(folder / INITIAL / BASELINES))
        before = sample_completions(evaluator.env, policy, sample_prompt_indices(evaluator.env))
        report(folder, by_agent, untrained, before, console)
        console.print(f"took {time.monotonic() - started:.0f} s; table, samples.txt and runs: {folder}")
    console.print(page_note(folder), soft_wrap=True)
    if failed := [f"{trial_name(t)}: {end.failure.text}" for t, end in zip(trials, ended, strict=True) if end.failure]:
        raise Unfinished(f"{len(failed)} of {len(trials)} trials failed. {' '.join(failed)}")


def _untrained(
    config: CompareConfig, evaluator: Evaluator, policy: TransformerPolicy, baselines: JsonObject
) -> dict[str, JsonObject]:
    """What is measured of the policies that are not trained, without the reference, by name."""
    n, kept = config.best_of_n, baselines["best_of_n"]
    if kept is None or kept["n"] != n:  # another n when the run began
        kept = best_of_n(evaluator, n)
    found = {f"best of {n}": kept}
    if "random" in config.agents:
        found["random"] = evaluator.measure(random_policy(policy))
    if evaluator.held_out is not None:
        others = _untrained(config, evaluator.held_out, policy, baselines["held_out"])
        found = {name: measured | {"held_out": others[name]} for name, measured in found.items()}
    return found
