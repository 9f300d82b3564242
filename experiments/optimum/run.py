"""python -m experiments optimum: trains agents on all tasks, and reports how far they get, and how fast."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from agents import files
from agents.files import JsonObject
from agents.training import default_learning_rate
from experiments.agent_classes import Settings, find_agent
from experiments.baselines import check_enough_for_best_of
from experiments.config import TrialConfig
from experiments.console import plain_console
from experiments.errors import FlagError, Unfinished
from experiments.opening import INITIAL, opened
from experiments.optimum.figure import draw
from experiments.optimum.record import add_trial, has_trial, read_record
from experiments.optimum.table import tables
from experiments.optimum.tasks import Group, SuiteTask, suite_tasks
from experiments.optimum.variants import Variant, variants
from experiments.ranges import check_flags
from experiments.report import write_report
from experiments.stable_baselines import StableBaselines
from experiments.trial import make_environments, prepare
from experiments.trials import run_trials

BEST_OF = 16  # n of best of n
# One in so many of the tokens of the stories, for agents that step the environment token by token: a token costs them
# thirty times the CPU seconds of the others.
STEPPED = 8


@dataclass
class OptimumConfig:
    """How far do agents get, and how fast? The share of the way to the optimum, on toys and on a language model.

    Ten Toy-v0 tasks, TajMahal and RewardHacking, whose optimum is exact; and stories that a language model tells, with
    VADER as the reward, whose optimum is estimated. It resumes where it was interrupted.
    """

    model: str | None = None
    """Path or hub id of the language model of the stories; without it they are left out."""
    prompts: str | None = None
    """File of the stories' openings."""
    tasks: list[Group] = field(default_factory=lambda: ["toys", "taj_mahal", "reward_hacking", "stories"])
    """The groups of tasks."""
    agents: list[str] = field(
        default_factory=lambda: ["reinforce", "actor_critic", "ppo", "rloo", "grpo", "path_consistency"]
    )
    """Agents at their default settings; on the stories one seed at a quarter of and four times the step size too."""
    peers: list[str] = field(default_factory=lambda: ["sb3-ppo", "trl-rloo", "trl-grpo"])
    """Agents of other libraries; on the stories each at three step sizes, and trl-grpo at three betas. TRL's are for
    the stories only, and need pip install -e ".[trl]"."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the agents."""
    toy_timesteps: int = 50_000
    """Tokens of each trial on a toy."""
    story_timesteps: int = 80_000
    """Tokens of each trial on the stories; an eighth of them for agents that step the environment token by token."""
    optimum_completions: int = 1024
    """Completions of the reference for each opening, from which J* of the stories is estimated, and best of 16: at
    least 16; 0: J* is not known."""
    num_workers: int = 0
    """Number of workers, each runs a trial on one thread; 0: one per processor."""
    out: Path | None = None
    """Output folder; by default a new one under runs/."""
    resume: bool = False
    """Resume the run in --out: what was trained is not trained again. Begin it if there is none yet."""
    take_over: bool = False
    """With --out in use by a command on another host: use it nevertheless, since that command does not run any more."""
    accept_changes: bool = False
    """With --resume: resume though flags, prompts or models are not those that the run began with."""

    def __post_init__(self) -> None:
        check_flags(self)
        for agent in self.agents:
            find_agent(agent, "--agents")
        for peer in self.peers:
            find_agent(peer, "--peers")
        if (self.model is None) != (self.prompts is None):
            raise FlagError("--model and --prompts are for the stories: give both, or none of them.")
        check_enough_for_best_of(self.optimum_completions, BEST_OF)

    def suite(self) -> list[SuiteTask]:
        """The tasks."""
        groups = [group for group in self.tasks if group != "stories" or self.model is not None]
        return suite_tasks(groups, self.model, self.prompts)

    def trial(self, task: SuiteTask, variant: Variant) -> TrialConfig:
        """The flags of one trial."""
        stories, tokens = task.group == "stories", self.toy_timesteps
        if stories:
            stepped = issubclass(find_agent(variant.agent), StableBaselines)
            tokens = max(self.story_timesteps // (STEPPED if stepped else 1), 1)
        return TrialConfig(
            **task.flags,  # type: ignore[arg-type]
            agent=variant.agent,
            seed=variant.seed,
            learning_rate=variant.factor * default_learning_rate(pretrained=stories, adapter=False),
            settings=Settings(variant.all_settings()),
            total_timesteps=tokens,
            optimum_completions=self.optimum_completions if stories else 0,
        )


def optimum(config: OptimumConfig) -> Path:
    """Runs the suite: writes `TASK.json` for each task, and at the end `report.txt` and `curves.png`.

    Raises:
        Unfinished: a trial failed. The others were run, and the report has what finished.
    """
    console, started = plain_console(width=None if sys.stdout.isatty() else 120), time.monotonic()
    tasks = config.suite()
    if not tasks:
        raise FlagError("--tasks must have a task to run, got stories without --model and --prompts.")
    failures, records = list[str](), dict[str, JsonObject]()
    with opened(config, "optimum") as folder:
        for number, task in enumerate(tasks, start=1):
            console.print(f"{task.name}, task {number} of {len(tasks)}")
            failures += run_task(config, task, folder)
            if (found := read_record(folder / f"{task.name}.json")) is not None:
                records[task.name] = found
        if records:
            draw(folder, records)
            write_report(folder, tables(records), console)
        console.print(f"took {time.monotonic() - started:.0f} s; tables, curves.png and every run: {folder}")
        if failures:
            raise Unfinished(f"{len(failures)} trials failed. {' '.join(failures)}")
    return folder


def run_task(config: OptimumConfig, task: SuiteTask, folder: Path) -> list[str]:
    """Trains the agents that `TASK.json` does not have yet, a seed at a time, and adds them; returns the failures."""
    path, own, failures = folder / f"{task.name}.json", folder / task.name, list[str]()
    kept = read_record(path)
    chosen = variants(task, config.agents, config.peers, config.seeds)
    trials = {variant: config.trial(task, variant) for variant in chosen}
    missing = [v for v in chosen if not has_trial(kept, v, trials[v].total_timesteps)]
    if not missing:
        return []
    first = trials[missing[0]]
    evaluator, _ = prepare(first, make_environments(first), own, [trials[v] for v in missing], best_of=BEST_OF)
    for _, group in itertools.groupby(missing, lambda variant: (variant.peer, variant.factor, variant.seed)):
        together = list(group)
        folders = [variant.folder(own) for variant in together]
        ended = run_trials([trials[v] for v in together], folders, own / INITIAL, config.num_workers)
        for variant, end in zip(together, ended, strict=True):
            if end.failure is None:
                gap = variant.seed == config.seeds[0]
                tokens = trials[variant].total_timesteps
                kept = add_trial(kept, task, variant, end.result, tokens, own, evaluator if gap else None)
            else:
                failures.append(f"{task.name}, {variant.name}, seed {variant.seed}: {end.failure.text}")
        if kept is not None:
            files.write_json(path, kept)
    return failures
