"""verify: what losses climb, over every batch of a toy; see `agents.verification`."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
import tyro

from agents import Agent, files
from agents.files import JsonObject
from agents.verification import (
    DEFAULT_TOY,
    AgentLoss,
    Loss,
    Measured,
    Report,
    Results,
    TooManyBatches,
    agent_loss,
    verify,
)
from experiments.agent_classes import AGENTS
from experiments.errors import FlagError, NotShown
from experiments.named_code import import_named, import_registrations
from experiments.ranges import check_flags
from experiments.task_arguments import check_task_arguments
from textenv import EnvLike
from textenv.data import printable
from textenv.exact import TreeTooLarge

TOY = "textenv/Toy-v0"
Expectation = Literal["unbiased", "zero_at_optimum", "zero_at_optimum_by_sample", "invariant"]


@dataclass
class VerifyConfig:
    """Measure what losses climb, over every batch of a toy: their expected gradient beside that of J."""

    losses: Annotated[list[str], tyro.conf.Positional]
    """Agents by name, and losses, agents or `agent_loss(...)` of your own, module:object."""
    env: str = TOY
    """A toy."""
    env_args: dict[str, int | float | str] = field(default_factory=dict)
    """Settings of the toy; of Toy-v0 by default 3 tokens, completions of up to 3 tokens, 2 prompts, and beta 0.2."""
    num_generations: int = 2
    """Completions per group."""
    num_prompts: int = 1
    """Groups per batch."""
    critic: Literal["exact", "zero"] = "exact"
    """V of agents with a critic: that of the policy, or 0."""
    sampled_batches: int | None = None
    """Estimate from this number of batches, with standard errors; by default all are enumerated."""
    seed: int = 0
    """Seed of the sampled batches."""
    expect: list[Expectation] = field(default_factory=list)
    """What must hold of each loss; else the exit code is 1. invariant: that no line of the report
    from "padding" on fails."""
    out: Path | None = None
    """The folder for verify.json and verify.txt; by default nothing is written."""

    def __post_init__(self) -> None:
        if not self.losses:
            raise FlagError(f"name a loss, module:object, or an agent of {', '.join(_names())}.")
        check_flags(self)


def verify_losses(config: VerifyConfig) -> None:
    """Prints the report of each loss.

    Raises:
        FlagError: there is no such loss, it is refused, or there are too many batches.
        NotShown: something that is expected does not hold.
    """
    torch.set_num_threads(1)
    if config.out is not None and config.out.exists() and not config.out.is_dir():
        raise FlagError(f"--out must be a folder, got the file {str(config.out)!r}.")
    losses = {name: _find(name, config.critic) for name in config.losses}
    env = _make(config)
    found: dict[str, JsonObject] = {}
    texts, missing = [], []
    for name, loss in losses.items():
        try:
            report = verify(
                loss,
                env,
                num_generations=config.num_generations,
                num_prompts=config.num_prompts,
                sampled_batches=config.sampled_batches,
                seed=config.seed,
            )
        except (TypeError, ValueError, TreeTooLarge, TooManyBatches) as error:
            raise FlagError(f"{name}: {error}") from error
        texts.append(f"{name}: {report}\n")
        print(printable(texts[-1], lines=True), flush=True)
        found[name] = numbers(report)
        if config.out is not None:  # after each loss: an error of the next one loses nothing
            config.out.mkdir(parents=True, exist_ok=True)
            files.write_text(config.out / "verify.json", json.dumps(found, indent=1) + "\n")
            files.write_text(config.out / "verify.txt", "\n".join(texts))
        missing += [f"{name} is not {each}" for each in config.expect if not _holds(report, each)]
    if missing:
        raise NotShown(f"{'; '.join(missing)}.")


def numbers(report: Report) -> JsonObject:
    """A report as JSON; null where a number does not exist."""
    return {
        "num_batches": report.num_batches,
        "ordered": report.ordered,
        "unbiased": report.unbiased,
        "fixed_point": _number(report.fixed_point),
        "on_policy": _results(report),
        "off_policy": {name: _results(each) for name, each in report.off_policy.items()},
        "invariances": {
            name: {"holds": each.holds, "error": _number(each.error), "cause": "" if each.holds else each.cause}
            for name, each in report.invariances.items()
        },
    }


def _results(results: Results) -> JsonObject:
    return {
        "by_policy": {name: _measured(each) for name, each in results.by_policy.items()},
        "zero_at_optimum": results.zero_at_optimum,
        "zero_at_optimum_by_sample": results.zero_at_optimum_by_sample,
    }


def _measured(each: Measured) -> JsonObject:
    names = ("bias", "stderr", "cosine", "noise")
    return {name: _number(getattr(each, name)) for name in names}


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _holds(report: Report, expectation: Expectation) -> bool:
    if expectation == "invariant":
        return not any(each.broken for each in report.invariances.values())
    return bool(getattr(report, expectation))


def _names() -> list[str]:
    """Our agents, whose updates can be measured."""
    return [name for name, path in AGENTS.items() if path.startswith("agents.")]


def _find(name: str, critic: Literal["exact", "zero"]) -> Loss | AgentLoss:
    if name not in _names() and ":" not in name:
        raise FlagError(f"a loss must be module:object, or an agent of {', '.join(_names())}, got {name!r}.")
    found = import_named(AGENTS.get(name, name), "the loss")
    if isinstance(found, type) and issubclass(found, Agent):
        return agent_loss(found, critic)
    loss: Loss | AgentLoss = found
    return loss


def _make(config: VerifyConfig) -> EnvLike:
    import_registrations(config.env)
    try:
        check_task_arguments(config.env, config.env_args)
        arguments: dict[str, Any] = (DEFAULT_TOY if config.env == TOY else {}) | config.env_args
        env: EnvLike = gym.make(config.env, **arguments)
    except (gym.error.Error, ValueError, TypeError) as error:
        raise FlagError(f"--env {config.env}: {error}") from error
    return env
