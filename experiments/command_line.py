"""python -m experiments {compare, train, evaluate, sample, lecture, reward-model, cost, bench}: see --help of each."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from tqdm import tqdm
from transformers.utils import logging

from agents.policy import TransformerPolicy
from agents.training import rank
from experiments.bench import BenchConfig, bench
from experiments.compare import CompareConfig, compare
from experiments.config import AGENTS, TrialConfig
from experiments.cost import CostConfig, cost
from experiments.env_flags import check_device
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, normalized_objective, sample_completions
from experiments.launch import is_launched, process_group
from experiments.lecture import LectureConfig, lecture
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.run_folder import read_config
from experiments.stable_baselines import StableBaselines
from experiments.trial import INITIAL, prepare, run_trial


@dataclass
class RunFlags:
    """The folder of a trained agent, and how to load it."""

    run: Path
    """Folder of one agent and seed."""
    device: str = "cpu"
    """Device of policy, reference and classifiers: cpu, cuda, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights of policy, reference and classifiers."""

    def load(self) -> tuple[TrialConfig, TransformerPolicy]:
        """Returns the flags of the run, and its policy."""
        config = dataclasses.replace(
            read_config(self.run, TrialConfig),
            device=self.device,
            dtype=self.dtype,
            float32_matmul_precision=None,  # kernels were chosen for the machine that trained it
            attn_implementation=None,
        )
        if not (self.run / "checkpoint").is_dir():
            raise FlagError(f"{str(self.run)!r} holds no checkpoint; pass the folder of one agent and seed.")
        try:
            policy = TransformerPolicy.from_pretrained(self.run / "checkpoint", dtype=getattr(torch, self.dtype))
        except ValueError as error:
            raise FlagError(str(error)) from error
        return config, policy.to(self.device)


@dataclass
class EvaluateConfig(RunFlags):
    """Measure a trained policy: exactly where the task can be enumerated, else from new completions."""

    eval_episodes: int = 1024
    """Completions to sample where the task is too large to enumerate."""


@dataclass
class SampleConfig(RunFlags):
    """Print completions of a trained policy."""

    prompt: list[str] | None = None
    """Prompts; by default the first three of the environment."""
    num: int = 3
    """Completions per prompt."""
    seed: int = 0
    """Seed of the sampled tokens."""


def train(config: TrialConfig) -> Path:
    """Trains one agent with one seed, as one of several ranks under `accelerate launch -m experiments`."""
    if not is_launched():
        return _train(config)
    if issubclass(AGENTS[config.agent], StableBaselines):
        raise FlagError(f"{config.agent} trains in one process; start it without a launcher.")
    check_device(config.device)  # accelerate would fall back to a CPU where there is no GPU
    with process_group(config.device) as (wrap, device):
        if wrap is not None and config.compile:
            raise FlagError("a sharded policy cannot be compiled: leave out --compile, or --use_fsdp of the launcher.")
        return _train(dataclasses.replace(config, device=device), wrap)


def _train(config: TrialConfig, wrap: Callable[[Any], Any] | None = None) -> Path:
    name = f"{config.agent}-{config.env.split('/')[-1]}-seed-{config.seed}"
    folder = prepare(config, name, [config])[1]  # the policy is not kept: the trial loads its own
    with tqdm(total=config.total_timesteps, unit="tok", unit_scale=True, mininterval=1.0, disable=rank() > 0) as bar:

        def progress(tokens: int) -> None:
            bar.update(min(tokens, bar.total - bar.n))

        summary = run_trial(config, folder, folder / INITIAL, progress, wrap)
    if rank() == 0:
        print(json.dumps(summary, indent=2))
        print(f"written to {folder}")
    return folder


def evaluate(config: EvaluateConfig) -> None:
    """Prints objective, score and KL of a trained policy, the baselines, and the states that cost most of J* - J."""
    trial, policy = config.load()
    env = trial.make_env()
    evaluator = Evaluator.for_env(env, config.eval_episodes)
    measured = evaluator.measure(policy)
    baselines = evaluator.baselines()
    share = normalized_objective(measured["objective"], baselines)
    content: dict[str, Any] = measured | {"normalized_objective": share, "baselines": baselines}
    if baselines["optimum"] is not None:
        content["gap_to_optimum"] = baselines["optimum"] - measured["objective"]
    if costs := evaluator.costliest_states(policy):
        content["costliest_states"] = costs
    print(json.dumps(content, indent=2))


def sample(config: SampleConfig) -> None:
    """Prints completions of a trained policy."""
    if config.num < 1:
        raise FlagError(f"--num must be at least 1, got {config.num}.")
    trial, policy = config.load()
    env = trial.make_env()
    prompts = config.prompt or env.unwrapped.prompts[:3]
    try:
        completions = sample_completions(env, policy, [p for p in prompts for _ in range(config.num)], config.seed)
    except ValueError as error:
        raise FlagError(f"--prompt: {error}") from error
    for row in completions:
        print(f"{row['prompt']} -> {row['completion']}   (score {row['score']:.2f}, log-ratio {row['kl']:.2f})")


Command = (
    Annotated[CompareConfig, tyro.conf.subcommand("compare", description=CompareConfig.__doc__)]
    | Annotated[TrialConfig, tyro.conf.subcommand("train", description=TrialConfig.__doc__)]
    | Annotated[EvaluateConfig, tyro.conf.subcommand("evaluate", description=EvaluateConfig.__doc__)]
    | Annotated[SampleConfig, tyro.conf.subcommand("sample", description=SampleConfig.__doc__)]
    | Annotated[LectureConfig, tyro.conf.subcommand("lecture", description=LectureConfig.__doc__)]
    | Annotated[CostConfig, tyro.conf.subcommand("cost", description=CostConfig.__doc__)]
    | Annotated[RewardModelConfig, tyro.conf.subcommand("reward-model", description=RewardModelConfig.__doc__)]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench", description=BenchConfig.__doc__)]
)


def main() -> None:
    """Parses the command line and runs the command."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit by an exception, so that workers are stopped too
    commands: dict[Any, Any] = {
        CompareConfig: compare,
        TrialConfig: train,
        EvaluateConfig: evaluate,
        SampleConfig: sample,
        LectureConfig: lecture,
        RewardModelConfig: reward_model,
        CostConfig: cost,
        BenchConfig: bench,
    }
    try:
        config: Any = tyro.cli(Command, prog="python -m experiments", description=__doc__)
        if is_launched() and not isinstance(config, TrialConfig):
            raise FlagError("a launcher of several ranks is for `train`; start this command without one.")
        commands[type(config)](config)
    except FlagError as error:
        Console(stderr=True).print(
            f"[red]error:[/red] {escape(str(error))}", highlight=False, emoji=False, soft_wrap=True
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
