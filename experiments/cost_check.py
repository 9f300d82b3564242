"""How far off is `experiments/cost.py`? One update of PPO, its peak memory and the times of its phases, measured."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor
from transformers import AutoTokenizer

import textenv  # noqa: F401
from agents import PPO, TransformerPolicy
from experiments.cost import Device, Job, Shape, memory, seconds
from textenv.unwrap import process_of


def most_bytes(call: Callable[[], Any], before: int) -> int:
    """The most that lives at once during a call: what did before, and all that the allocator gives and takes back.

    Nothing that was there before may be freed in the call: the profiler does not see it go.
    """
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
    masters = agent.masters.of(agent.trained)
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
    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = tokenizer.decode([tokenizer.encode("and", add_special_tokens=False)[-1]] * (job.prompt - 2))
    env = gym.make(
        "textenv/Text-v0",
        tokenizer=tokenizer,
        prompts=[prompt],
        reward=lambda prompts, completions, completion_ids, **columns: [0.0] * len(prompts),
        reference=path,
        max_new_tokens=job.new,
    )
    reference: Any = process_of(env).reference
    dtype = torch.float32 if job.bytes == 4 else torch.bfloat16
    reference.model.to(dtype)
    policy = TransformerPolicy.for_env(env, separate_critic=job.separate_critic, lora=adapter(job.lora_rank)).cast(
        dtype
    )
    rows: dict[str, Any] = {"n_episodes": job.episodes, "micro_batch_size": job.micro_batch, "n_epochs": job.epochs}
    agent = PPO(policy, env, seed=0, **rows)
    agent.train(agent.collect())  # Adam's moments and the gradients are there from now on
    peaks = {"peak bytes to collect": most_bytes(agent.collect, held_bytes(agent, reference.model))}
    rollout = agent.collect()
    agent.optimizer.zero_grad()  # as `train` begins by
    peaks["peak bytes to learn"] = most_bytes(lambda: agent.train(rollout), held_bytes(agent, reference.model))
    width = rollout.input_ids.shape[1] - rollout.num_tokens
    shape, on_paper = Shape.of(reference.config), replace(job, prompt=width, new=rollout.num_tokens)
    times = seconds(shape, on_paper, this_machine(shape, on_paper.micro_batch * on_paper.tokens, dtype))
    found = memory(shape, on_paper)
    return {
        "parameters": (shape.parameters, sum(p.numel() for p in reference.copy_of_model().parameters())),
        **{name: (found[name.split()[-1]], peak) for name, peak in peaks.items()},
        "seconds to collect": (times["writing"] + times["scoring"], timed(agent.collect)),
        "seconds to learn": (times["update"], timed(lambda: agent.train(rollout))),
    }


def adapter(rank: int) -> Any:
    """A `peft.LoraConfig` on all linear layers, as `--lora-rank` makes; None for rank 0."""
    if rank == 0:
        return None
    from peft import LoraConfig

    return LoraConfig(r=rank, target_modules="all-linear")
