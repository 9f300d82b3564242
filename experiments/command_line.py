"""Trains agents, and measures them: `python -m experiments COMMAND --help` explains a command."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from inspect import getdoc
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from transformers.utils import logging

from agents import files
from agents.training import rank
from experiments.agent_classes import find_agent, short_name
from experiments.bench import BenchConfig, bench
from experiments.check_reward import CheckRewardConfig, check
from experiments.compare import CompareConfig, compare
from experiments.config import TrialConfig
from experiments.console import escape_logs_and_warnings, progress_bar
from experiments.cost import CostConfig, cost
from experiments.env_flags import check_device
from experiments.errors import EXPECTED, FlagError, Stopped, paragraph
from experiments.failure import FAILED
from experiments.html_report import ReportConfig, page_note, report_runs
from experiments.launch import Wrap, is_launched, process_group
from experiments.lecture import LectureConfig, lecture
from experiments.library_agent import LibraryAgent
from experiments.opening import INITIAL, opened
from experiments.optimum import OptimumConfig, optimum
from experiments.parsing import parse
from experiments.play import PlayConfig, play
from experiments.rescore import RescoreConfig, rescore
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.saved_run import EvaluateConfig, SampleConfig, evaluate, sample
from experiments.settings_flags import asked_agents, registry_of
from experiments.stopping import stops_at_once
from experiments.trial import make_environments, prepare, run_trial
from experiments.verify import VerifyConfig, verify_losses
from textenv.data import printable


def train(config: TrialConfig) -> Path:
    """Trains one agent with one seed, as one of several ranks under `accelerate launch -m experiments`."""
    if not is_launched():
        return _train(config)
    if issubclass(find_agent(config.agent), LibraryAgent):
        raise FlagError(f"{config.agent} trains in one process; start it without a launcher.")
    check_device(config.device)  # accelerate would fall back to a CPU where there is no GPU
    with process_group(config.device) as (wrap, device):
        if wrap is not None and config.compile:
            raise FlagError("a sharded policy cannot be compiled: leave out --compile, or --use_fsdp of the launcher.")
        return _train(dataclasses.replace(config, device=device), wrap)


def _train(config: TrialConfig, wrap: Wrap | None = None) -> Path:
    name = f"{short_name(config.agent)}-{config.env.split('/')[-1]}-seed-{config.seed}"
    environments = make_environments(config)
    with (
        opened(config, name) as folder,
        progress_bar(total=config.total_timesteps, unit="tok", unit_scale=True, disable=rank() > 0) as bar,
    ):
        prepare(config, environments, folder, [config])  # the trial loads its own policy

        def progress(tokens: int) -> None:
            bar.update(min(tokens, bar.total - bar.n))

        try:
            summary = run_trial(config, folder, folder / INITIAL, progress, wrap)
        except Exception:
            if rank() == 0 and (folder / FAILED).is_file():  # the page tells it
                with suppress(files.StorageError):  # the error that is raised is the one to know
                    print(printable(page_note(folder)), file=sys.stderr)
            raise
    if rank() == 0:
        print(json.dumps(summary, indent=2))
        print(f"written to {printable(folder)}; {printable(page_note(folder))}")
    return folder


Command = (
    Annotated[CompareConfig, tyro.conf.subcommand("compare", description=getdoc(CompareConfig))]
    | Annotated[TrialConfig, tyro.conf.subcommand("train", description=getdoc(TrialConfig))]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate", description=EvaluateConfig.__doc__)]
    | Annotated[SampleConfig, tyro.conf.subcommand("sample", description=SampleConfig.__doc__)]
    | Annotated[PlayConfig, tyro.conf.subcommand("play", description=getdoc(PlayConfig))]
    | Annotated[ReportConfig, tyro.conf.subcommand("report", description=ReportConfig.__doc__)]
    | Annotated[RescoreConfig, tyro.conf.subcommand("rescore", description=RescoreConfig.__doc__)]
    | Annotated[LectureConfig, tyro.conf.subcommand("lecture", description=LectureConfig.__doc__)]
    | Annotated[OptimumConfig, tyro.conf.subcommand("optimum", description=getdoc(OptimumConfig))]
    | Annotated[CostConfig, tyro.conf.subcommand("cost", description=CostConfig.__doc__)]
    | Annotated[CheckRewardConfig, tyro.conf.subcommand("check-reward", description=CheckRewardConfig.__doc__)]
    | Annotated[RewardModelConfig, tyro.conf.subcommand("reward-model", description=RewardModelConfig.__doc__)]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench", description=getdoc(BenchConfig))]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify", description=VerifyConfig.__doc__)]
)


def read_arguments(arguments: Sequence[str]) -> Any:
    """Returns the config of a command line.

    `train` and `compare` have the flags that all agents share, and those of the agents that are asked for: a help that
    had all of them would be 400 lines. Theirs is one line a flag, and `-H` explains each.

    Raises:
        FlagError: a flag has a value that its config refuses, is given twice, or is a setting of an agent that is not
            asked for.
        SystemExit: the command line cannot be parsed; or it asked for help.
    """
    flags = Counter(argument.split("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--"))
    if twice := [flag for flag, count in flags.items() if count > 1 and flag.strip("-")]:  # "--" alone is no flag
        raise FlagError(
            f"{twice[0]} must be given once, with all its values behind it; got it {flags[twice[0]]} times."
        )
    agents = asked_agents(arguments)
    registry, compact = registry_of(agents or []), agents is not None
    about: dict[str, Any] = {"prog": "python -m experiments", "description": __doc__}
    return parse(Command, arguments, registry=registry, compact_help=compact, **about)


def main() -> None:
    """Parses the command line and runs the command.

    The exit code is 2 for flags that are refused, 1 for other errors, and 128 plus the number of a signal.
    """
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    escape_logs_and_warnings()
    commands: dict[Any, Any] = {
        CompareConfig: compare,
        TrialConfig: train,
        EvaluateConfig: evaluate,
        SampleConfig: sample,
        PlayConfig: play,
        ReportConfig: report_runs,
        RescoreConfig: rescore,
        LectureConfig: lecture,
        OptimumConfig: optimum,
        CheckRewardConfig: check,
        RewardModelConfig: reward_model,
        CostConfig: cost,
        BenchConfig: bench,
        VerifyConfig: verify_losses,
    }
    try:
        with stops_at_once():
            config: Any = read_arguments(sys.argv[1:])
            if is_launched() and not isinstance(config, TrialConfig):
                raise FlagError("a launcher of several ranks is for `train`; start this command without one.")
            commands[type(config)](config)
    except EXPECTED as error:
        _print("error", paragraph(error))
        sys.exit(2 if isinstance(error, FlagError) else 1)
    except Stopped as stop:
        _print("stopped", paragraph(stop).removeprefix("stopped "))
        sys.exit(stop.code)


def _print(word: str, text: str) -> None:
    shown = escape(printable(text, lines=True))
    Console(stderr=True).print(f"[red]{word}:[/red] {shown}", highlight=False, emoji=False, soft_wrap=True)
