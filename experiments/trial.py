"""One trial: one agent with one seed on an environment, in a folder of its own, resumable."""

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

from agents import Agent
from agents.policy import TransformerPolicy, check_compiler
from agents.sampling import GraphSampler, Sampler, generate_sampler, sample
from agents.training import rank, run_on_rank0, world_size
from experiments.config import AGENTS, AgentFlags, TrialConfig
from experiments.env_flags import set_attention
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, normalized_objective, sample_completions, tokens_to_reach
from experiments.run_folder import open_folder, write_config
from experiments.stable_baselines import StableBaselines
from experiments.trial_log import CHECKPOINTS, TrialLog

INITIAL = "initial"
NUM_SAMPLE_PROMPTS = 6


def make_environment(config: AgentFlags) -> Any:
    """Sets the precision of float32 matrix products for this OS process, and returns the environment of the flags."""
    if config.float32_matmul_precision is not None:
        torch.set_float32_matmul_precision(config.float32_matmul_precision)
    return config.make_env()


def initial_policy(config: AgentFlags, env: Any, folder: Path) -> TransformerPolicy:
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
        policy = TransformerPolicy.from_pretrained(folder, separate_critic=config.separate_critic)
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


def _save_initial(config: AgentFlags, env: Any, folder: Path) -> None:
    if not (folder / "policy.json").is_file():
        TransformerPolicy.for_env(env, temperature=config.temperature).save_pretrained(folder)


def measure_baselines(evaluator: Evaluator, folder: Path) -> dict[str, float | None]:
    """Returns objective and scores of the reference, and the optimum, which all trials of a run share.

    They are kept in `folder`, since sampling takes a while.
    """
    path = folder / "baselines.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # trials may start at the same time: each writes the same content to its own file, then renames it
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(evaluator.baselines(), indent=2) + "\n")
        os.replace(temporary, path)
    known: dict[str, float | None] = json.loads(path.read_text())
    return known


def sample_prompt_indices(env: Any) -> list[int]:
    """Indices of the prompts whose completions are shown, spread evenly over the environment's prompts."""
    count = len(env.unwrapped.prompts)
    return [int(i) for i in np.linspace(0, count, min(NUM_SAMPLE_PROMPTS, count), endpoint=False)]


def prepare(config: AgentFlags, name: str, trials: list[TrialConfig]) -> tuple[Evaluator, Path, TransformerPolicy]:
    """Returns the evaluator of a run (with its environment), its folder, and the policy that its trials start from.

    Raises:
        FlagError: flags or settings that are invalid or contradict each other. A new folder is then removed again,
            except with several ranks: another rank may be about to read it, and to find the same error.
    """
    env = make_environment(config)
    folder = run_on_rank0(lambda: open_folder(config, name, time.strftime("%Y%m%d-%H%M%S")))
    try:
        evaluator = Evaluator.for_env(env, config.eval_episodes)
        measure_baselines(evaluator, folder / INITIAL)  # calls the reward: one that fails raises here
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
    """Trains and evaluates an agent and writes the results to `folder`; resumes from the checkpoint if there is one.

    The folder then holds `config.json`, `metrics.jsonl` (a row an update), TensorBoard events, `checkpoint/`,
    `samples.jsonl` and `summary.json`. With several ranks all train and evaluate (the others would wait), and rank 0
    writes.

    Args:
        config: the flags of the trial.
        folder: the output folder.
        initial: the folder of the policy to start from (see `initial_policy`).
        progress: called with the number of tokens sampled since its last call.
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
    env = make_environment(config)
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
        completions = sample_completions(env, agent.policy, sample_prompt_indices(env))
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
            (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in completions))
            (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def _agent(
    config: TrialConfig, env: Any, folder: Path, initial: Path, wrap: Callable[[Any], Any] | None = None
) -> Agent | StableBaselines:
    """Returns the agent of the last checkpoint, or a new one where there is no checkpoint."""
    kind = AGENTS[config.agent]

    def restore(policy: TransformerPolicy) -> Any:  # what a checkpoint does not store
        policy = _apply_flags(config, policy)
        return policy if wrap is None else wrap(policy)

    for name in CHECKPOINTS:
        if not (folder / name / "training_state.pt").is_file():  # it is saved last: the checkpoint is not complete
            continue
        try:
            if issubclass(kind, Agent):
                return kind.load(folder / name, env, device=config.device, wrap=restore)
            theirs = kind.load(folder / name, env, device=config.device)
        except ValueError as error:  # of another format, or of other settings
            raise FlagError(str(error)) from error
        restore(theirs.policy)
        return theirs
    agent = config.make_agent(initial_policy(config, env, initial), env)
    if wrap is not None and isinstance(agent, Agent):
        agent.distribute(wrap)
    return agent
