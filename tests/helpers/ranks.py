"""Agents and rollouts for the tests of distributed training, and two ranks that run a function."""

from __future__ import annotations

import faulthandler
import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.sampling import Rollout, collect, new_generator
from agents.training import gather_tensor
from experiments.launch import process_group
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, words

COUNT = 16  # completions, in groups of 4
EXACT, BROKEN = 1e-5, 1e-2
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "REINFORCE, no baseline": (REINFORCE, {"baseline": None}),
    "REINFORCE, mean": (REINFORCE, {"baseline": "mean"}),
    "REINFORCE, leave one out": (REINFORCE, {"baseline": "leave_one_out"}),
    "REINFORCE, sequence, mean": (REINFORCE, {"baseline": "mean", "credit": "sequence", "micro_batch_size": 3}),
    # at so low a temperature all continuations of a state are the same, whichever rank samples them
    "REINFORCE, q, mean": (REINFORCE, {"baseline": "mean", "credit": "q", "temperature": 1e-6}),
    "ActorCritic": (ActorCritic, {"num_generations": 1}),
    "ActorCritic, whitened": (ActorCritic, {"normalize_advantage": True}),
    "PPO": (PPO, {"n_epochs": 2}),
    "PPO, whitened": (PPO, {"normalize_advantage": True, "micro_batch_size": 4}),
    "PPO, separate critic": (PPO, {"normalize_advantage": True, "separate_critic": True}),
    "RLOO": (RLOO, {}),
    "RLOO, exact KL": (RLOO, {"kl_in": "loss", "kl_loss": "exact"}),
    "GRPO": (GRPO, {}),
    "GRPO, DAPO's mean": (GRPO, {"loss": "dapo", "n_epochs": 1, "micro_batch_size": 3}),
    "GRPO, whitened": (GRPO, {"scale_rewards": False, "normalize_advantage": True, "n_epochs": 1}),
    "PathConsistency": (PathConsistency, {"n_epochs": 2, "micro_batch_size": 4}),
}
HAS_PEFT = importlib.util.find_spec("peft") is not None


def task() -> Any:
    """A task whose scores depend on the prompt."""
    return make(words(4, kl_coef=0.2))


def agent_of(name: str, **more: Any) -> Any:
    """An agent of `CASES` with learning rate 0, so that its gradient can be read after an update."""
    kind, settings = CASES[name]
    env = task()
    own = {key: settings[key] for key in ("separate_critic", "temperature") if key in settings}
    policy = random_policy(env, **own)
    defaults = {"learning_rate": 0.0, "max_grad_norm": 1e9, "n_episodes": COUNT, "num_generations": 4, "seed": 0}
    return kind(policy, env, **(defaults | {key: value for key, value in settings.items() if key not in own} | more))


def bfloat16_agent(name: str = "ActorCritic", **settings: Any) -> Any:
    """An agent with its trunk in bfloat16 and its value head in float32, and micro-batches of a quarter."""
    agent = agent_of(name, micro_batch_size=COUNT // 4, **settings)
    agent.policy.cast(torch.bfloat16).value_head.float()
    return agent


def all_completions() -> Rollout:
    """The rollout of all ranks, from another policy than the trained one, with other rewards and values."""
    env = task()
    rollout = collect(
        env, random_policy(env, seed=3, scale=0.1), COUNT, num_generations=4, generator=new_generator("cpu", 5)
    )
    rollout.rewards += torch.where(rollout.mask, rollout.prompt[:, None].float(), 0.0)  # the return depends on x
    values = torch.linspace(-1, 2, rollout.mask.numel(), dtype=torch.float64).view(rollout.mask.shape)
    return replace(rollout, values=torch.where(rollout.mask, values, 0.0))


def half(rollout: Rollout, r: int) -> Rollout:
    """The completions of rank r: two whole groups."""
    return rollout[slice(r * COUNT // 2, (r + 1) * COUNT // 2)]


def gradient(agent: Any, rollout: Rollout) -> Tensor:
    """The gradient that `train` leaves behind."""
    agent.train(rollout)
    masters = agent.optimization.stepped
    return torch.cat([gather_tensor(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in masters])


def distance(found: Tensor, expected: Tensor) -> float:
    """The relative error."""
    return float((found - expected).norm() / expected.norm())


def check_gradients(name: str, ranks: list[dict[str, Any]]) -> None:
    """Two ranks have the gradient of one rank with all completions; half of them alone has another."""
    whole = gradient(agent_of(name), all_completions())
    found = [each[name] for each in ranks]
    assert torch.equal(*found)
    assert distance(found[0], whole) < EXACT
    assert distance(gradient(agent_of(name), half(all_completions(), 0)), whole) > BROKEN


def check_bfloat16_gradients(ranks: list[dict[str, Any]]) -> None:
    """The same in bfloat16, where a mean of bfloat16 gradients is far away."""
    whole = gradient(bfloat16_agent(), all_completions())
    found = [each["bfloat16"] for each in ranks]
    assert torch.equal(*found)
    assert distance(found[0], whole) < EXACT
    halves = [gradient(bfloat16_agent(), half(all_completions(), r)) for r in range(2)]
    assert distance(halves[0], whole) > BROKEN
    assert distance(sum(halves) / 2, whole) < EXACT
    assert distance((halves[0].bfloat16() + halves[1].bfloat16()) / 2, whole) > 100 * EXACT


def run_on_two_ranks(results: Callable[[int, Path], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Calls `results(rank, folder)` on two ranks, joined by accelerate over gloo; returns what each rank returned."""
    torch.multiprocessing.spawn(_run_rank, (results, folder), nprocs=2)
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(2)]


def _run_rank(r: int, results: Callable[[int, Path], dict[str, Any]], folder: Path) -> None:
    launched = {"RANK": r, "LOCAL_RANK": r, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
    os.environ.update({key: str(value) for key, value in launched.items()})
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(300, exit=True)  # ranks that deadlock print their stacks
    # the ranks meet through a file: another program might take a port that is free now
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=r, world_size=2)
    with process_group("cpu") as (wrap, _):
        assert wrap is None  # whole weights, unless accelerate is configured otherwise
        found = results(r, folder)
    torch.save(found, folder / f"{r}.pt")
