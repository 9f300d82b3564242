"""Measures one update of PPO, its peak memory and the seconds of its phases, beside the estimates."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

import textenv  # noqa: F401
from agents import PPO, Agent
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from experiments.cost.device import least_seconds
from experiments.cost.equations import Job, Shape, dtype_of, lora_config, memory
from experiments.cost.times import estimate, measure_for
from textenv import get_mdp
from textenv.lm import load_tokenizer


def peak_bytes_during(call: Callable[[], object], before: int, device: str = "cpu") -> int:
    """Peak bytes during a call: `before`, plus the allocations and releases that the profiler records.

    The call must not free what was allocated before it: the profiler does not record that. On a GPU torch's own count
    is used.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events: Any = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peak: int = before + max(0, *itertools.accumulate(change for _, change in changes))
    return peak


def resident_bytes(agent: Agent, reference: Any) -> int:
    """Bytes of weights, master weights, gradients, Adam's moments and reference; shared storage counts once.

    No reference to a gradient is kept, so that it can be freed.
    """
    trained = agent.optimization.stepped
    states = [
        x for state in agent.optimization.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)
    ]
    gradients = [p.grad for p in trained if p.grad is not None]
    weights = [*agent.policy.parameters(), *reference.parameters(), *trained]
    return sum({x.data_ptr(): x.nbytes for x in (*weights, *gradients, *states)}.values())


class Compared(NamedTuple):
    """An estimate and what was measured."""

    quantity: str
    estimated: float
    measured: float


def check(path: str, job: Job, device: str = "cpu") -> list[Compared]:
    """Compares parameters, peak bytes and seconds of one PPO update with the model in a folder.

    It uses the episodes, tokens, epochs, micro-batch, dtype, adapter and critic of `job`; it runs on one device,
    without gradient checkpointing. Each measurement of the device is beside one of the update, since other load on the
    machine comes and goes; of a few the least is taken.
    """
    agent = make_agent(path, job, device)
    reference: Any = get_mdp(agent.env).reference
    shape = Shape.of(reference.config)
    parameters = sum(p.numel() for p in reference.copy_model().parameters())
    peaks = peak_bytes(agent, job)
    rollout = agent.collect()
    sampled = with_sampled_lengths(job, rollout)
    constants = measure_for(reference.config, job, device)
    collect = least_seconds(agent.collect, device)
    update = least_seconds(lambda: agent.train(rollout), device)
    terms = estimate(reference.config, sampled, constants, device == "cpu")
    times = {phase: sum(seconds.values()) for phase, seconds in terms.items()}
    return [
        Compared("parameters", shape.parameters, parameters),
        *(Compared(f"peak bytes, {phase}", *pair) for phase, pair in peaks.items()),
        Compared("seconds, collect", times["sampling"] + times["scoring"], collect),
        Compared("seconds, update", times["update"], update),
    ]


def make_agent(path: str, job: Job, device: str = "cpu") -> PPO:
    """PPO on the model in a folder, with the number of completions and tokens of the job."""
    tokenizer = load_tokenizer(path)
    known = ("and", "the", "was", "her", "she", "his", "they", "little")
    words = [tokenizer.encode(word, add_special_tokens=False)[-1] for word in known]
    drawn = random.Random(0)  # from so many that few repeat: a repeated prompt would be computed once
    prompts = [tokenizer.decode(drawn.choices(words, k=job.prompt - 2)) for _ in range(32 * job.episodes)]
    env = gym.make(
        "textenv/Text-v0",
        tokenizer=tokenizer,
        prompts=prompts,
        reward=lambda prompts, completions, completion_ids, **columns: [0.0] * len(prompts),
        reference=path,
        max_new_tokens=job.new,
        special_tokens_in_prompts=True,  # the prompts are decoded ids
    )
    dtype = dtype_of(job)
    reference: Any = get_mdp(env).reference
    reference.model.to(device, dtype)
    lora = lora_config(job.lora_rank) if job.lora_rank else None
    policy = TransformerPolicy.for_env(env, separate_critic=job.separate_critic, lora=lora).cast(dtype).to(device)
    rows: dict[str, Any] = {"n_episodes": job.episodes, "micro_batch_size": job.micro_batch, "n_epochs": job.epochs}
    return PPO(policy, env, seed=0, **rows)


def with_sampled_lengths(job: Job, rollout: Rollout) -> Job:
    """The job with the lengths of the prompts and completions that were sampled."""
    return replace(job, prompt=rollout.input_ids.shape[1] - rollout.num_tokens, new=rollout.num_tokens)


def peak_bytes(agent: PPO, job: Job) -> dict[str, tuple[float, float]]:
    """`(estimated, measured)` peak bytes of collect and update, once Adam's moments and gradients are allocated."""
    mdp: Any = get_mdp(agent.env)
    reference, device = mdp.reference, str(agent.policy.device)
    agent.train(agent.collect())
    measured = {"collect": peak_bytes_during(agent.collect, resident_bytes(agent, reference.model), device)}
    rollout = agent.collect()
    agent.optimization.optimizer.zero_grad()  # the first thing that `train` does
    measured["update"] = peak_bytes_during(lambda: agent.train(rollout), resident_bytes(agent, reference.model), device)
    estimated = memory(Shape.of(reference.config), with_sampled_lengths(job, rollout))
    return {phase: (estimated[phase], peak) for phase, peak in measured.items()}
