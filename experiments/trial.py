"""One trial: an agent and a seed on an environment, in a folder of its own, resumable."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from agents import Agent
from agents.policy import TransformerPolicy, check_compiler
from agents.sampling import GraphSampler, Rollout, Sampler, generate_sampler, sample
from agents.training import rank, run_on_rank0, world_size
from experiments.config import AGENTS, AgentFlags, TrialConfig, set_attention
from experiments.console import completions_table, plain_console
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, normalized_objective, sample_completions, tokens_to_reach
from experiments.run_folder import open_folder, plain, write_config
from experiments.stable_baselines import StableBaselines

CHECKPOINT_SECONDS = 10.0  # between two checkpoints, or longer, so that they take less than a twentieth of the time
INITIAL = "initial"
CHECKPOINTS = ("checkpoint", "checkpoint.new", "checkpoint.old")  # in case a run was killed while it renamed them
SHOWN_PROMPTS = 6


def environment(config: AgentFlags) -> Any:
    """What the flags name, in a process that multiplies as they say."""
    if config.float32_matmul_precision is not None:
        torch.set_float32_matmul_precision(config.float32_matmul_precision)
    return config.make_env()


def initial_policy(config: AgentFlags, env: Any, folder: Path) -> TransformerPolicy:
    """The policy at the reference, where every trial of a run starts; kept in `folder`, since a toy's takes seconds."""
    settings: dict[str, Any] = {"temperature": config.temperature, "separate_critic": config.separate_critic}
    if config.lora_rank:
        from peft import LoraConfig

        lora = LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
        policy = TransformerPolicy.for_env(env, lora=lora, **settings)
    else:
        run_on_rank0(lambda: _write_initial(config, env, folder))
        policy = TransformerPolicy.from_pretrained(folder, separate_critic=config.separate_critic)
    return _apply_flags(config, policy.cast(getattr(torch, config.dtype)).to(config.device))


def _apply_flags(config: AgentFlags, policy: TransformerPolicy) -> TransformerPolicy:
    """How it reads and learns, which no checkpoint says."""
    if config.attn_implementation is not None:
        set_attention(policy.model, config.attn_implementation)
        if policy.critic is not None:
            policy.critic.set_attn_implementation(config.attn_implementation)
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable()
    if config.compile:
        policy.compile()
    return policy


def _write_initial(config: AgentFlags, env: Any, folder: Path) -> None:
    if not (folder / "policy.json").is_file():
        TransformerPolicy.for_env(env, temperature=config.temperature).save_pretrained(folder)


def measure_baselines(evaluator: Evaluator, folder: Path) -> dict[str, float | None]:
    """Reference and optimum, which all trials of a run share; kept in `folder`, since sampling takes a while."""
    path = folder / "baselines.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")  # trials may begin at once: each writes the same, then moves it
        whole.write_text(json.dumps(evaluator.baselines(), indent=2) + "\n")
        os.replace(whole, path)
    known: dict[str, float | None] = json.loads(path.read_text())
    return known


def sample_prompt_indices(env: Any) -> list[int]:
    """The prompts whose answers are shown, spread evenly over the environment's."""
    count = len(env.unwrapped.prompts)
    return [int(i) for i in np.linspace(0, count, min(SHOWN_PROMPTS, count), endpoint=False)]


def prepare(config: AgentFlags, name: str, trials: list[TrialConfig]) -> tuple[Evaluator, Path, TransformerPolicy]:
    """What a run is measured against (its environment among it), its folder and the policy that its trials start from.

    Raises:
        FlagError: flags or settings that do not fit; a new folder is then removed again (of several processes another
            may be about to read it, and to find the same error).
    """
    env = environment(config)
    folder = run_on_rank0(lambda: open_folder(config, name, time.strftime("%Y%m%d-%H%M%S")))
    try:
        evaluator = Evaluator.for_env(env, config.eval_episodes)
        measure_baselines(evaluator, folder / INITIAL)  # a reward that fails does so now
        policy = initial_policy(config, env, folder / INITIAL)
        for trial in trials:
            trial.make_agent(policy, env)
            if trial.sampler == "graph" and policy.device.type == "cpu":
                check_compiler()
    except (ValueError, TypeError, ImportError) as error:
        if not config.resume and world_size() == 1:
            shutil.rmtree(folder)
        raise FlagError(str(error)) from error
    return evaluator, folder, policy


def run_trial(
    config: TrialConfig,
    folder: Path,
    initial: Path,
    progress: Callable[[int], None] = lambda tokens: None,
    wrap: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """Train, evaluate, and write everything to `folder`; goes on from its checkpoint if there is one.

    The folder then holds `config.json`, `metrics.jsonl` (a row an update), TensorBoard events, `checkpoint/`,
    `samples.jsonl` and `summary.json`. Of several processes each trains and evaluates (the others would wait), and the
    first writes.

    Args:
        config: what to run.
        folder: where to write.
        initial: the folder of the policy to start from (see `initial_policy`).
        progress: called with the number of tokens that were written since the last call.
        wrap: see `Agent.distribute`.

    Returns:
        The summary.
    """
    if (folder / "summary.json").is_file():
        progress(config.total_timesteps)
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        return summary
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_config(config, folder)
    env = environment(config)
    evaluator = Evaluator.for_env(env, config.eval_episodes)
    baselines = measure_baselines(evaluator, initial)
    agent = _agent(config, env, folder, initial, wrap)
    if isinstance(agent, Agent):
        samplers: dict[str, Sampler] = {"loop": sample, "generate": generate_sampler, "graph": GraphSampler()}
        agent.sampler = samplers[config.sampler]
    progress(agent.num_timesteps)

    with TrialLog(config, folder, evaluator, agent, progress) as log:
        agent.learn(max(0, config.total_timesteps - agent.num_timesteps), callback=log, reset_num_timesteps=False)
        log.checkpoint()
        measured = evaluator.measure(agent.policy)
        answers = sample_completions(env, agent.policy, sample_prompt_indices(env))
        summary = {
            "agent": config.agent,
            "seed": config.seed,
            **measured,
            "normalized_objective": normalized_objective(measured["objective"], baselines),
            "tokens_to_90": tokens_to_reach(0.9, log.rows, baselines),
            "baselines": baselines,
            "num_timesteps": agent.num_timesteps,
            "num_updates": agent.num_updates,
            "seconds": log.seconds,
            "tokens_per_second": agent.num_timesteps / log.seconds,
        }
        if rank() == 0:
            (folder / "samples.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _agent(
    config: TrialConfig, env: Any, folder: Path, initial: Path, wrap: Callable[[Any], Any] | None = None
) -> Agent | StableBaselines:
    """A new agent, or the one of the last checkpoint."""
    kind = AGENTS[config.agent]

    def as_before(policy: TransformerPolicy) -> Any:  # what a checkpoint does not say
        policy = _apply_flags(config, policy)
        return policy if wrap is None else wrap(policy)

    for name in CHECKPOINTS:
        if (folder / name / "training_state.pt").is_file():  # written last: the checkpoint is whole
            if issubclass(kind, Agent):
                return kind.load(folder / name, env, device=config.device, wrap=as_before)
            theirs = kind.load(folder / name, env, device=config.device)
            as_before(theirs.policy)
            return theirs
    agent = config.make_agent(initial_policy(config, env, initial), env)
    if wrap is not None and isinstance(agent, Agent):
        agent.distribute(wrap)
    return agent


class TrialLog:
    """The callback of `learn`: writes a row of metrics an update, evaluates now and then, keeps a checkpoint."""

    def __init__(
        self,
        config: TrialConfig,
        folder: Path,
        evaluator: Evaluator,
        agent: Agent | StableBaselines,
        progress: Callable[[int], None],
    ) -> None:
        self.config, self.folder, self.evaluator, self.agent, self.progress = config, folder, evaluator, agent, progress
        self.grid = np.linspace(0, config.total_timesteps, config.num_evals + 1)
        rows = run_on_rank0(lambda: read_metrics(folder))  # which begins the file anew below
        self.rows = [row for row in rows if row["num_updates"] <= agent.num_updates]
        self.seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        self.reported = agent.num_timesteps
        self.last_time = self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds = 0.0

    def __enter__(self) -> TrialLog:
        if rank() == 0:
            self._open()
        if not self.rows:
            first = self.evaluator.measure(self.agent.policy)
            self.write({"num_timesteps": 0, "num_updates": 0, "seconds": 0.0} | _prefixed(first))
        self.last_time = time.monotonic()
        return self

    def _open(self) -> None:
        # rows after the checkpoint are written again as they come again
        self.file = (self.folder / "metrics.jsonl").open("w")
        if self.config.wandb_project is not None:
            import wandb  # mirrors what TensorBoard is told from here on

            name = f"{self.config.agent}-seed-{self.config.seed}"
            wandb.init(
                project=self.config.wandb_project,
                name=name,
                dir=self.folder,
                config=plain(self.config),
                sync_tensorboard=True,
                reinit="finish_previous",
            )
        self.board = SummaryWriter(str(self.folder), purge_step=self.agent.num_timesteps + 1 if self.rows else None)
        for row in self.rows:
            self.file.write(json.dumps(row) + "\n")

    def __exit__(self, *error: object) -> None:
        if rank() > 0:
            return
        self.file.close()
        self.board.close()
        if self.config.wandb_project is not None:
            import wandb

            wandb.finish()

    def __call__(self, agent: Agent | StableBaselines, rollout: Any, metrics: dict[str, float]) -> None:
        """After each update."""
        self.seconds += time.monotonic() - self.last_time  # evaluations and checkpoints do not count
        row = {"num_timesteps": agent.num_timesteps, "num_updates": agent.num_updates, "seconds": self.seconds}
        row |= metrics
        if np.searchsorted(self.grid, self.reported, "right") < np.searchsorted(
            self.grid, agent.num_timesteps, "right"
        ):
            row |= _prefixed(self.evaluator.measure(agent.policy))
        self.write(row)
        every = self.config.log_completions
        if rank() == 0 and every and agent.num_updates % every == 0 and isinstance(rollout, Rollout):
            plain_console().print(completions_table(rollout, agent.num_updates))
        self.progress(agent.num_timesteps - self.reported)
        self.reported = agent.num_timesteps
        if run_on_rank0(self._is_due):
            self.checkpoint()
        self.last_time = time.monotonic()

    def write(self, row: dict[str, float]) -> None:
        """One row, to the file and to TensorBoard."""
        self.rows.append(row)
        if rank() > 0:
            return
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            self.board.add_scalar(name, value, row["num_timesteps"])

    def _is_due(self) -> bool:
        return time.monotonic() - self.last_checkpoint > max(CHECKPOINT_SECONDS, 20 * self.checkpoint_seconds)

    def checkpoint(self) -> None:
        """Save the agent; the old checkpoint stands until the new one is whole."""
        began = time.monotonic()
        now, new, old = (self.folder / name for name in CHECKPOINTS)
        if rank() == 0:
            shutil.rmtree(new, ignore_errors=True)
        self.agent.save(new)
        if rank() == 0:
            if now.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.replace(now, old)
            os.replace(new, now)
            shutil.rmtree(old, ignore_errors=True)
        self.last_checkpoint = time.monotonic()
        self.checkpoint_seconds = self.last_checkpoint - began


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of `metrics.jsonl`; a last line that was cut off is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _prefixed(measured: dict[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in measured.items()}
