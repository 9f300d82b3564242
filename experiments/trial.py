"""One trial: one agent with one seed on an environment, in a folder of its own, resumable."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents import Agent, files
from agents.files import JsonObject
from agents.policy import TransformerPolicy, check_compiler
from agents.training import rank, run_on_rank0
from experiments.agent_classes import find_agent
from experiments.baselines import measure_baselines
from experiments.checkpoints import Checkpoint, checkpoint_to_resume
from experiments.config import AgentFlags, TrialConfig
from experiments.env_flags import set_attention
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, make_evaluator, sample_completions
from experiments.failure import keeps_failure
from experiments.frontier import write_frontier
from experiments.held_out import Environments
from experiments.launch import Wrap
from experiments.library_agent import LibraryAgent
from experiments.opening import INITIAL
from experiments.run_folder import CONFIG, write_config
from experiments.share import normalized_objective, normalized_objective_stderr, tokens_to_reach
from experiments.state_tree import write_tree
from experiments.stopping import stops_later
from experiments.summary import read_summary, write_summary
from experiments.trial_log import TrialLog
from experiments.wandb_login import check_login
from textenv import EnvLike, exact
from textenv.data import printable
from textenv.rewards import RewardError

NUM_SAMPLE_PROMPTS = 6


def make_environments(config: AgentFlags) -> Environments:
    """Sets the precision of float32 matrix products for this OS process, and returns the environments of the flags.

    The flags get their default step size, which depends on the environment.
    """
    if config.float32_matmul_precision is not None:
        torch.set_float32_matmul_precision(config.float32_matmul_precision)
    environments = config.make_environments()
    config.resolve_learning_rate(environments.train)
    return environments


def initial_policy(config: AgentFlags, env: EnvLike, folder: Path) -> TransformerPolicy:
    """Returns the policy at the reference, where every trial of a run starts.

    It is kept in `folder`, since fitting a policy to a toy's reference takes seconds.
    """
    settings: dict[str, Any] = {"temperature": config.temperature, "separate_critic": config.separate_critic}
    if config.lora_rank:
        from peft import LoraConfig

        lora = LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
        policy = TransformerPolicy.for_env(env, lora=lora, **settings)
    else:
        run_on_rank0(lambda: _save_initial(config, env, folder))
        try:
            policy = TransformerPolicy.from_pretrained(
                folder, separate_critic=config.separate_critic, trust_remote_code=config.trust_remote_code
            )
        except files.DamagedFile as error:
            raise files.DamagedFile(f"{error} Remove {str(folder)!r}, and resume: it is made again.") from error
    return _apply_flags(config, policy.cast(getattr(torch, config.dtype)).to(config.device))


def _apply_flags(config: AgentFlags, policy: TransformerPolicy) -> TransformerPolicy:
    """Applies attention, gradient checkpointing and compilation, which a checkpoint does not store."""
    if config.attn_implementation is not None:
        set_attention(policy.model, config.attn_implementation)
        if policy.critic is not None:
            policy.critic.set_attn_implementation(config.attn_implementation)
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable()
    if config.compile:
        policy.compile()
    return policy


def _save_initial(config: AgentFlags, env: EnvLike, folder: Path) -> None:
    files.finish_folder(folder)
    if not (folder / "policy.json").exists():
        TransformerPolicy.for_env(env, temperature=config.temperature).save_pretrained(folder)


def sample_prompt_indices(env: Any) -> list[int]:
    """Indices of the prompts whose completions are shown, spread evenly over the environment's prompts."""
    count = len(env.unwrapped.prompts)
    return [int(i) for i in np.linspace(0, count, min(NUM_SAMPLE_PROMPTS, count), endpoint=False)]


def prepare(
    config: AgentFlags, environments: Environments, folder: Path, trials: list[TrialConfig], best_of: int = 0
) -> tuple[Evaluator, TransformerPolicy]:
    """Returns the evaluator of a run and the policy that its trials start from.

    Args:
        config: the flags of the run.
        environments: its environments.
        folder: its folder.
        trials: whose agents are made once, so that settings that they refuse are known before any trial starts.
        best_of: see `measure_baselines`.

    Raises:
        FlagError: flags or settings that are invalid or contradict each other.
        RewardError: the reward failed; it is called to measure the baselines.
    """
    try:
        check_login(config.wandb_project)
        if config.lora_rank and importlib.util.find_spec("peft") is None:
            raise FlagError('--lora-rank needs peft: pip install -e ".[peft]".')
        evaluator = make_evaluator(config, environments)
        policy = initial_policy(config, environments.initial, folder / INITIAL)
        for trial in trials:
            trial.make_agent(policy, environments.train)
            if trial.sampler == "graph" and policy.device.type == "cpu":
                check_compiler()
        # last: it may take minutes
        measure_baselines(evaluator, folder / INITIAL, config.optimum_completions, best_of)
        run_on_rank0(lambda: write_frontier(evaluator.solution, folder / INITIAL))
    except (RewardError, FlagError, files.DamagedFile):
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise FlagError(str(error)) from error
    return evaluator, policy


def run_trial(
    config: TrialConfig,
    folder: Path,
    initial: Path,
    progress: Callable[[int], None] = lambda tokens: None,
    wrap: Wrap | None = None,
) -> JsonObject:
    """Trains and evaluates an agent and writes the results to `folder`; resumes from the checkpoint if there is one.

    The folder then holds `config.json`, `metrics.jsonl` (a row an update), TensorBoard events, `checkpoint/`,
    `samples/` (see `token_samples`), `samples.jsonl` and `summary.json`; or `failed.json`, see `keeps_failure`. With
    several ranks all train and evaluate (the others would wait), and rank 0 writes.

    Args:
        config: the flags of the trial.
        folder: the output folder.
        initial: the folder of the policy to start from (see `initial_policy`).
        progress: called with the number of tokens sampled since its last call.
        wrap: see `Agent.distribute`.

    Returns:
        The summary.

    Raises:
        Stopped: a signal came; a checkpoint was written after the update that ran.
    """
    finished = run_on_rank0(lambda: read_summary(folder))
    if finished is not None and finished["num_timesteps"] >= config.total_timesteps:  # which may have been raised
        progress(config.total_timesteps)
        if config.accept_changes and rank() == 0:
            text = f"{folder}: the trial has finished: nothing is trained. For other flags choose another --out."
            print(printable(text), file=sys.stderr)
        return finished
    environments = make_environments(config)  # first: config.json has the step size that it resolves
    env = environments.train
    if rank() == 0:
        with files.storage_errors("make", folder):
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / CONFIG).is_file():
            write_config(config, folder)
    evaluator = make_evaluator(config, environments)
    baselines = measure_baselines(evaluator, initial, config.optimum_completions)
    resumed = run_on_rank0(lambda: checkpoint_to_resume(folder, initial, config.keep_checkpoints))
    agent = _agent(config, environments, resumed, initial, wrap)
    if isinstance(agent, Agent):
        agent.sampler = config.make_sampler()
    progress(agent.num_timesteps)

    with (
        keeps_failure(folder, agent),
        TrialLog(config, folder, initial, baselines, evaluator, agent, progress, resumed) as log,
    ):
        with stops_later("this update and its checkpoint") as stop:

            def after_update(agent: Agent, rollout: object, metrics: dict[str, float]) -> bool:
                log(agent, rollout, metrics)
                return stop.number is None  # False ends `learn`, on all ranks

            remaining = max(0, config.total_timesteps - agent.num_timesteps)
            agent.learn(remaining, callback=after_update, reset_num_timesteps=False)
            log.checkpoint()
        stop.stop_if_requested()
        completions = sample_completions(env, agent.policy, sample_prompt_indices(env))
        held_out, known = evaluator.held_out, evaluator.evaluate_exactly(agent.policy)
        summary = {
            "agent": config.agent,
            "seed": config.seed,
            **_result(evaluator, agent.policy, baselines, known),
            "held_out": held_out and _result(held_out, agent.policy, baselines["held_out"]),
            "tokens_to_90": tokens_to_reach(0.9, log.rows_before_gaps(), baselines),
            "baselines": baselines,
            "num_timesteps": agent.num_timesteps,
            "num_updates": agent.num_updates,
            "seconds": log.seconds,
            "cpu_seconds": log.cpu_seconds,
            "tokens_per_second": agent.num_timesteps / log.seconds,
            "gaps": log.gaps,
            "completions": completions,
        }
        if rank() == 0:
            files.write_text(folder / "samples.jsonl", "".join(json.dumps(row) + "\n" for row in completions))
            write_tree(evaluator.solution, known, folder)
            write_summary(folder, summary)
    written: JsonObject = files.finite(summary)
    return written


def _result(
    evaluator: Evaluator, policy: TransformerPolicy, baselines: JsonObject, known: exact.Evaluation | None = None
) -> JsonObject:
    """What a policy reaches on the prompts of an evaluator, and the share of the way; for `known` see `measure`."""
    measured = evaluator.measure(policy, known)
    share = normalized_objective(measured["objective"], baselines)
    stderr = normalized_objective_stderr(share, measured.get("objective_stderr"), baselines)
    return {**measured, "normalized_objective": share, "normalized_objective_stderr": stderr}


def _changed_settings(config: TrialConfig, resumed: Checkpoint) -> dict[str, Any]:
    """The agent's settings that are others than the checkpoint's: those that --accept-changes has let pass."""
    saved = files.read_object(resumed.folder / "agent.json").get("settings")
    settings = config.hyperparameters()
    if not isinstance(saved, dict):  # which `load` refuses
        return {}
    return {name: value for name, value in settings.items() if name in saved and saved[name] != value}


def _agent(
    config: TrialConfig,
    environments: Environments,
    resumed: Checkpoint | None,
    initial: Path,
    wrap: Wrap | None = None,
) -> Agent | LibraryAgent:
    """Returns the agent of a checkpoint, or a new one."""
    kind = find_agent(config.agent)

    def restore(policy: TransformerPolicy) -> Any:  # what a checkpoint does not store
        policy = _apply_flags(config, policy)
        return policy if wrap is None else wrap(policy)

    if resumed is not None:
        loaded = _changed_settings(config, resumed)
        loaded |= {"device": config.device, "trust_remote_code": config.trust_remote_code}
        try:
            if issubclass(kind, Agent):
                loaded["optimizer"] = config.hyperparameters()["optimizer"]  # code that the command line names
                return kind.load(resumed.folder, environments.train, wrap=restore, **loaded)
            theirs = kind.load(resumed.folder, environments.train, **loaded)
        except files.DamagedFile:
            raise
        except ValueError as error:  # of another agent, or of other settings
            raise FlagError(str(error)) from error
        restore(theirs.policy)
        return theirs
    agent = config.make_agent(initial_policy(config, environments.initial, initial), environments.train)
    if wrap is not None and isinstance(agent, Agent):
        agent.distribute(wrap)
    return agent
