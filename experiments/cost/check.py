"""How far off is `experiments/cost.py`? One update of PPO, its peak memory and the times of its phases, measured."""

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
from transformers import AutoTokenizer

import textenv  # noqa: F401
from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from experiments.cost.equations import Device, Job, Shape, memory, seconds
from textenv import get_mdp


def most_bytes(call: Callable[[], Any], before: int, device: str = "cpu") -> int:
    """The most that lives at once during a call: what did before, and all that the allocator gives and takes back.

    Nothing that was there before may be freed in the call: the profiler does not see it go. A GPU counts by itself.
    """
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events: Any = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    most: int = before + max(0, *itertools.accumulate(change for _, change in changes))
    return most


def held_bytes(agent: Any, reference: Any) -> int:
    """Weights, masters, gradients, Adam's moments, reference; what is there twice by name counts once.

    No reference to a gradient is kept, so that it can be freed.
    """
    masters = agent.master_weights.masters_of(agent.trained)
    states = [x for state in agent.optimizer.state.values() for x in state.values() if isinstance(x, Tensor)]
    gradients = [p.grad for p in masters if p.grad is not None]
    weights = [*agent.policy.parameters(), *reference.parameters(), *masters]
    return sum({x.data_ptr(): x.nbytes for x in (*weights, *gradients, *states)}.values())


def timed(call: Callable[[], Any], times: int = 3) -> float:
    """The least seconds of some calls: what else runs on the machine makes it only longer."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        found.append(time.perf_counter() - began)
    return min(found)


def this_machine(shape: Shape, rows: int, dtype: torch.dtype) -> Device:
    """Bandwidth, arithmetic in products of the model's own sizes, and the time to start an operation, on one thread."""
    left, right = torch.randn(rows, shape.width, dtype=dtype), torch.randn(shape.width, shape.mlp, dtype=dtype)
    long = torch.zeros(2**24)
    small, layer = torch.zeros(1, 8), torch.nn.Linear(8, 8)
    bandwidth = 2 * long.nbytes / timed(long.clone)
    arithmetic = 2 * left.numel() * shape.mlp / timed(lambda: left @ right, times=100)
    latency = timed(lambda: [layer(small) for _ in range(1000)]) / 1000
    return Device(memory=float("inf"), bandwidth=bandwidth, arithmetic=arithmetic, latency=latency)


def check(path: str, job: Job) -> dict[str, tuple[float, float]]:
    """Of one PPO update with a model in a folder, `(on paper, measured)` by what: parameters, bytes, seconds.

    Of a `job`, the episodes, tokens, epochs, micro-batch, dtype, adapter and critic count; one device, no checkpoints.
    """
    agent = agent_of(path, job)
    reference: Any = get_mdp(agent.env).reference
    shape = Shape.of(reference.config)
    peaks = peak_bytes(agent, job)
    rollout = agent.collect()
    written = as_written(job, rollout)
    machine = this_machine(shape, written.micro_batch * written.tokens, agent.policy.model.dtype)
    times = seconds(shape, written, machine)
    return {
        "parameters": (shape.parameters, sum(p.numel() for p in reference.copy_model().parameters())),
        **{f"peak bytes to {phase}": pair for phase, pair in peaks.items()},
        "seconds to collect": (times["writing"] + times["scoring"], timed(agent.collect)),
        "seconds to learn": (times["update"], timed(lambda: agent.train(rollout))),
    }


def agent_of(path: str, job: Job, device: str = "cpu") -> PPO:
    """PPO on the model in a folder, with as many answers and tokens as the job has."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    known = ("and", "the", "was", "her", "she", "his", "they", "little")
    words = [tokenizer.encode(word, add_special_tokens=False)[-1] for word in known]
    drawn = random.Random(0)  # of so many that hardly any is there twice, which would be read once
    prompts = [tokenizer.decode(drawn.choices(words, k=job.prompt - 2)) for _ in range(32 * job.episodes)]
    env = gym.make(
        "textenv/Text-v0",
        tokenizer=tokenizer,
        prompts=prompts,
        reward=lambda prompts, completions, completion_ids, **columns: [0.0] * len(prompts),
        reference=path,
        max_new_tokens=job.new,
    )
    dtype = torch.float32 if job.bytes == 4 else torch.bfloat16
    reference: Any = get_mdp(env).reference
    reference.model.to(device, dtype)
    lora = adapter(job.lora_rank)
    policy = TransformerPolicy.for_env(env, separate_critic=job.separate_critic, lora=lora).cast(dtype).to(device)
    rows: dict[str, Any] = {"n_episodes": job.episodes, "micro_batch_size": job.micro_batch, "n_epochs": job.epochs}
    return PPO(policy, env, seed=0, **rows)


def as_written(job: Job, rollout: Rollout) -> Job:
    """The job with the tokens that its answers really have."""
    return replace(job, prompt=rollout.input_ids.shape[1] - rollout.num_tokens, new=rollout.num_tokens)


def peak_bytes(agent: PPO, job: Job) -> dict[str, tuple[float, float]]:
    """`(on paper, measured)` of the two phases of an update, once there are Adam's moments and gradients."""
    mdp: Any = get_mdp(agent.env)
    reference, device = mdp.reference, str(agent.policy.device)
    agent.train(agent.collect())
    measured = {"collect": most_bytes(agent.collect, held_bytes(agent, reference.model), device)}
    rollout = agent.collect()
    agent.optimizer.zero_grad()  # as `train` begins by
    measured["learn"] = most_bytes(lambda: agent.train(rollout), held_bytes(agent, reference.model), device)
    on_paper = memory(Shape.of(reference.config), as_written(job, rollout))
    return {phase: (on_paper[phase], most) for phase, most in measured.items()}


def adapter(rank: int) -> Any:
    """A `peft.LoraConfig` on all linear layers, as `--lora-rank` makes; None for rank 0."""
    if rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear")
