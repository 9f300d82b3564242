"""Measures one update of PPO, its peak memory and the seconds of its phases, beside the estimates of the equations."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

import textenv  # noqa: F401
from agents import PPO, Agent
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from experiments.cost.equations import Device, Job, Shape, memory, seconds
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


def least_seconds(call: Callable[[], object], times: int = 3) -> float:
    """Least seconds of several calls: other load on the machine only makes a call slower."""
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        durations.append(time.perf_counter() - started)
    return min(durations)


def measure_device(shape: Shape, rows: int, dtype: torch.dtype) -> Device:
    """Measures bandwidth, arithmetic (products of the model's sizes) and latency of an operation, on one thread."""
    left, right = torch.randn(rows, shape.width, dtype=dtype), torch.randn(shape.width, shape.mlp, dtype=dtype)
    long = torch.zeros(2**24)
    small, layer = torch.zeros(1, 8), torch.nn.Linear(8, 8)
    bandwidth = 2 * long.nbytes / least_seconds(long.clone)
    arithmetic = 2 * left.numel() * shape.mlp / least_seconds(lambda: left @ right, times=100)
    latency = least_seconds(lambda: [layer(small) for _ in range(1000)]) / 1000
    return Device(memory=float("inf"), bandwidth=bandwidth, arithmetic=arithmetic, latency=latency)


def check(path: str, job: Job) -> dict[str, tuple[float, float]]:
    """Returns `(estimated, measured)` parameters, bytes and seconds of one PPO update with the model in a folder.

    It uses the episodes, tokens, epochs, micro-batch, dtype, adapter and critic of `job`; it runs on one device,
    without gradient checkpointing.
    """
    agent = make_agent(path, job)
    reference: Any = get_mdp(agent.env).reference
    shape = Shape.of(reference.config)
    peaks = peak_bytes(agent, job)
    rollout = agent.collect()
    sampled = with_sampled_lengths(job, rollout)
    device = measure_device(shape, sampled.micro_batch * sampled.tokens, agent.policy.model.dtype)
    times = seconds(shape, sampled, device)
    return {
        "parameters": (shape.parameters, sum(p.numel() for p in reference.copy_model().parameters())),
        **{f"peak bytes, {phase}": pair for phase, pair in peaks.items()},
        "seconds, collect": (times["sampling"] + times["scoring"], least_seconds(agent.collect)),
        "seconds, update": (times["update"], least_seconds(lambda: agent.train(rollout))),
    }


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
    dtype = torch.float32 if job.bytes == 4 else torch.bfloat16
    reference: Any = get_mdp(env).reference
    reference.model.to(device, dtype)
    lora = adapter(job.lora_rank)
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


def adapter(rank: int) -> Any:
    """A `peft.LoraConfig` on all linear layers, as for `--lora-rank`; None for rank 0."""
    if rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear")
