"""Optimizers by name, and their step sizes over a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from agents.named_code import import_named
from agents.policy import TransformerPolicy
from textenv import TextMDP
from textenv.references import CausalLMReference

ParameterGroups = list[dict[str, Any]]  # as torch takes them, with their "lr"
MakeOptimizer = Callable[[ParameterGroups], torch.optim.Optimizer]
Rate = float | Callable[[float], float]  # a step size, or that at a share of the training, 0 .. 1

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "adam": partial(torch.optim.Adam, eps=1e-5),  # Kingma & Ba 2015; eps as in Huang et al. 2024 (arXiv:2403.17031)
    "adagrad": torch.optim.Adagrad,  # Duchi et al. 2011
}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: 0.5 * (1.0 + math.cos(math.pi * share)),
}
SMALL = 1_000_000  # parameters up to which a model is a toy's, trained from scratch


def find_optimizer(name: object) -> MakeOptimizer:
    """Returns what makes an optimizer from parameter groups.

    Args:
        name: "adam", "adagrad", or "module:object", which is imported and called with parameter groups.

    Raises:
        ValueError: another name, or one that cannot be imported or called.
    """
    if isinstance(name, str) and name in OPTIMIZERS:
        return OPTIMIZERS[name]
    if not isinstance(name, str) or ":" not in name:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, or module:object, got {name!r}.")
    try:
        found = import_named(name)
    except ValueError as error:
        raise ValueError(f"optimizer {error}") from error
    if not callable(found):
        raise ValueError(f"optimizer must be called with parameter groups, got {name!r}, which is {found!r:.100}.")
    make: MakeOptimizer = found
    _try_to_make(make, name)
    return make


def _try_to_make(make: MakeOptimizer, name: str) -> None:
    """Makes an optimizer of two numbers, in two groups as those of agents with V are.

    Raises:
        ValueError: it fails, or makes something else.
    """
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1e-3} for _ in range(2)]
    try:
        made: object = make(groups)
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"optimizer must make a torch optimizer from parameter groups, got {name!r}, which raises "
            f"{type(error).__name__}: {text:.200}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer must make a torch.optim.Optimizer, got {name!r}, which makes {type(made).__name__}."
        )


def default_learning_rate(pretrained: bool, adapter: bool) -> float:
    """The step size that suits what is trained: a LoRA adapter, a pretrained model, or a toy's small transformer."""
    return 1e-4 if adapter else 1e-5 if pretrained else 1e-3


def is_pretrained(policy: TransformerPolicy, mdp: TextMDP | None) -> bool:
    """Whether a policy starts at a language model: the reference is one, or the policy is too large for a toy's."""
    if mdp is not None and isinstance(mdp.reference, CausalLMReference):
        return True
    return bool(sum(parameter.numel() for parameter in policy.model.parameters()) > SMALL)


def rate_at(rate: Rate, share: float) -> float:
    """The step size at a share of the training.

    Raises:
        ValueError: a schedule returns no finite number of at least 0, or at the beginning none above 0.
    """
    if not callable(rate):
        return rate
    found = rate(share)
    if not isinstance(found, float | int) or not 0 <= found < math.inf or (share == 0 and found == 0):
        rule = "a finite number > 0 (lr_warmup begins with small steps)" if share == 0 else "a finite number >= 0"
        raise ValueError(f"learning_rate({share:g}) must be {rule}, got {found!r:.100}.")
    return float(found)


def rate_factor(rate: Rate, schedule: str, warmup: int, share: float, num_updates: int) -> float:
    """The factor of all step sizes in an update: that of the warm-up, of the schedule, and of a `rate` that is one.

    Args:
        rate: the setting `learning_rate`.
        schedule: a name in `SCHEDULES`.
        warmup: the number of updates over which the step size rises, 1 / warmup in the first.
        share: the share of the training that is done, 0 .. 1.
        num_updates: the updates that are done.
    """
    rise = min(1.0, (num_updates + 1) / warmup) if warmup else 1.0
    own = rate_at(rate, share) / rate_at(rate, 0.0) if callable(rate) else 1.0
    return rise * SCHEDULES[schedule](share) * own
