"""evaluate, sample: commands that read the folder of a run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from agents import check_fit
from agents.files import DamagedFile, JsonObject
from agents.policy import TransformerPolicy
from agents.sampling import new_generator
from experiments.baselines import sample_reference
from experiments.checkpoints import newest_checkpoint
from experiments.config import TrainFlags
from experiments.console import score_text
from experiments.env_flags import check_device
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, make_evaluator, sample_completions
from experiments.held_out import Environments
from experiments.ranges import check_flags
from experiments.run_folder import CONFIG, read_config
from experiments.share import describe_baselines, normalized_objective, normalized_objective_stderr
from experiments.task_arguments import is_own_task
from textenv import get_mdp
from textenv.data import printable
from textenv.rewards import RewardError

SAMPLE_BATCH = 64  # completions that are in memory together


@dataclass
class RunFlags:
    """The folder of a trained agent, and how to load it."""

    run: Path
    """Folder of one agent and seed."""
    env: str | None = None
    """Registered id of the environment; by default the run's. One that is not textenv's own must be given, because it
    is code that the folder names."""
    model: str | None = None
    """Path or hub id of the reference; by default the run's."""
    prompts: str | None = None
    """File of prompts; by default the run's."""
    eval_prompts: str | None = None
    """File of prompts that were not trained on; by default the run's."""
    held_out: float | None = None
    """Share of the prompts that was not trained on; by default the run's."""
    reward: list[str] | None = None
    """Rewards as in `train`; by default the run's. module:function must be given, because it is code that the folder
    names."""
    gold_reward: str | None = None
    """Gold reward as in `train`; by default the run's. module:function must be given."""
    device: str = "cpu"
    """Device of policy, reference and classifiers: cpu, cuda, ..."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the weights of policy, reference and classifiers."""
    trust_remote_code: bool = False
    """Run the Python code that models and classifiers bring; what the run was trained with does not count."""

    def __post_init__(self) -> None:
        check_flags(self)

    def load(self) -> tuple[Environments, TransformerPolicy]:
        """Returns the environments of the run, and its policy.

        Raises:
            FlagError: see `settings_from_folder`; there is no checkpoint, or its policy does not fit the environment.
            DamagedFile: no checkpoint is whole.
        """
        check_device(self.device)
        config = settings_from_folder(self)
        try:
            checkpoint = newest_checkpoint(self.run)
            if checkpoint is None:
                raise FlagError(f"{str(self.run)!r} holds no checkpoint; pass the folder of one agent and seed.")
            checkpoint.print_passed_over()
            policy = TransformerPolicy.from_pretrained(
                checkpoint.folder, dtype=getattr(torch, self.dtype), trust_remote_code=self.trust_remote_code
            )
        except DamagedFile:
            raise
        except (ValueError, OSError) as error:
            raise FlagError(str(error)) from error
        environments = config.make_environments()
        try:
            check_fit(policy, get_mdp(environments.train))
        except ValueError as error:
            raise FlagError(f"The policy in {str(self.run)!r} does not fit the environment: {error}") from error
        return environments, policy.to(self.device)


def settings_from_folder(flags: RunFlags) -> TrainFlags:
    """Returns the settings in the `config.json` of a run, with those that the command line gives instead.

    Nothing that only the folder names is imported: such a name must be repeated on the command line. The agent is not
    needed, so an agent of the user's is not imported at all.

    Raises:
        FlagError: the folder holds no run, or names code that the command line does not name.
    """
    saved = read_config(flags.run)
    names = ("env", "model", "prompts", "eval_prompts", "held_out", "reward", "gold_reward")
    given = {name: value for name in names if (value := getattr(flags, name)) is not None}
    code = [] if is_own_task(saved.env) else [("env", saved.env)]
    code += [("reward", name) for name in saved.reward or () if ":" in name]
    code += [("gold_reward", name) for name in (saved.gold_reward or "",) if ":" in name]
    if unnamed := [(flag, name) for flag, name in code if flag not in given]:
        flag, name = unnamed[0]
        raise FlagError(
            f"{flags.run / CONFIG} names {name!r}, which would import and run code. If you trust it, name it on the "
            f"command line too: --{flag.replace('_', '-')} ..."
        )
    return dataclasses.replace(
        saved,
        **given,
        device=flags.device,
        dtype=flags.dtype,
        trust_remote_code=flags.trust_remote_code,
        float32_matmul_precision=None,  # kernels were chosen for the machine that trained it
        attn_implementation=None,
    )


@dataclass
class EvaluateConfig(RunFlags):
    """Measure a trained policy: exactly where the task can be enumerated, else from new completions."""

    eval_episodes: int = 1024
    """Completions to sample where the task is too large to enumerate."""
    optimum_completions: int = 512
    """Where the task is too large to enumerate: completions of the reference for each prompt, from which the optimum J*
    is estimated; 0: J* is not known."""
    max_eval_prompts: int = 16
    """Where the task is too large to enumerate: the largest number of prompts, spread evenly over the task's, on which
    the policy is measured and J* is estimated; equally many completions of each."""


@dataclass
class SampleConfig(RunFlags):
    """Print completions of a trained policy."""

    prompt: list[str] | None = None
    """Prompts; by default the first three of the environment."""
    num: int = 3
    """Completions per prompt."""
    seed: int = 0
    """Seed of the sampled tokens."""


def evaluate(config: EvaluateConfig) -> None:
    """Prints objective, score and KL of a trained policy, the baselines, and the states that cost most of J* - J.

    With prompts that are not trained on, the same of these, under `held_out`.
    """
    environments, policy = config.load()
    evaluator = make_evaluator(config, environments)
    content = _measured(config, evaluator, policy)
    for text in describe_baselines(content["baselines"]):
        print(text, file=sys.stderr)
    if evaluator.held_out is not None:
        content["held_out"] = _measured(config, evaluator.held_out, policy)
    print(json.dumps(content, indent=2))


def _measured(config: EvaluateConfig, evaluator: Evaluator, policy: TransformerPolicy) -> JsonObject:
    measured, estimated = evaluator.measure(policy), evaluator.tree is None and config.optimum_completions
    completions = sample_reference(evaluator, config.optimum_completions, of_each=2) if estimated else None
    baselines = evaluator.baselines(completions)
    share = normalized_objective(measured["objective"], baselines)
    content: JsonObject = measured | {
        "normalized_objective": share,
        "normalized_objective_stderr": normalized_objective_stderr(share, measured.get("objective_stderr"), baselines),
        "baselines": baselines,
    }
    if baselines["optimum"] is not None:
        content["gap_to_optimum"] = baselines["optimum"] - measured["objective"]
    if costs := evaluator.costliest_states(policy):
        content["costliest_states"] = costs
    return content


def sample(config: SampleConfig) -> None:
    """Prints completions of a trained policy."""
    environments, policy = config.load()
    env = environments.train
    prompts: list[str] | list[int] = config.prompt or list(range(min(3, len(get_mdp(env).prompts.texts))))
    generator = new_generator(policy.device, config.seed)
    rows = (prompt for prompt in prompts for _ in range(config.num))
    while batch := list(itertools.islice(rows, SAMPLE_BATCH)):
        try:
            completions = sample_completions(env, policy, batch, generator)
        except RewardError:
            raise
        except ValueError as error:
            raise FlagError(f"--prompt: {error}") from error
        for row in completions:
            kl = "" if row["kl"] is None else f", log-ratio {row['kl']:.2f}"
            text = f"{printable(row['prompt'])} -> {printable(row['completion'])}"
            print(f"{text}   (score {score_text(row['score'])}{kl})", flush=True)
