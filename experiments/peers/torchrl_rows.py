"""Which settings of TorchRL are measured, and what its documentation states about them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torchrl.objectives import PPOLoss
from torchrl.objectives.llm import CISPOLoss

from agents.verification import Report
from experiments.peers.row import Claim, Row, exact_direction
from experiments.peers.torchrl_losses import GRPO, PPO, TableActor
from experiments.peers.toys import BETA

EQUAL = "score - KL, equal lengths"
QUIET: dict[str, Any] = {"entropy_bonus": False}


def rows() -> list[Row]:
    """The settings in the order of the table."""
    return [*ppo(), *grpo()]


def ppo() -> list[Row]:
    """After GAE with lambda = 1 and the exact V; the rewards have the KL."""
    normalized, whitened = QUIET | {"normalize_advantage": True}, "entropy_bonus=False, normalize_advantage=True"
    return [
        Row("PPOLoss(entropy_bonus=False)", partial(PPO, PPOLoss, **QUIET), EQUAL, fixed_point=True),
        Row("ClipPPOLoss(entropy_bonus=False)", partial(PPO, **QUIET), EQUAL, fixed_point=True),
        Row("ClipPPOLoss()", PPO, EQUAL, fixed_point=True),
        Row(f"ClipPPOLoss({whitened})", partial(PPO, **normalized), EQUAL),
        Row(f"ClipPPOLoss({whitened})", partial(PPO, **normalized), EQUAL, num_generations=3),
        Row("ClipPPOLoss(entropy_bonus=False)", partial(PPO, **QUIET)),
        Row('ClipPPOLoss(entropy_bonus=False, reduction="sum")', partial(PPO, reduction="sum", **QUIET)),
    ]


def grpo() -> list[Row]:
    """After MCAdvantage, which divides by the standard deviation of the group."""
    kl: dict[str, Any] = {"kl_to_ref_coeff": BETA}
    diluted = Claim(
        "coefficient for the KL divergence to the reference policy",
        "docstring of `GRPOLoss`, `kl_to_ref_coeff`",
        exact_direction,
        "the term is the mean of k3 over all columns of the padded batch, those of prompts and of padding included. "
        "Its weight depends on them and not on `aggregation`, and its gradient is not that of the KL",
    )
    stops = Claim(
        "CISPO (Clipped Importance Sampling Policy Optimization). [...] See the MiniMax-M1 (CISPO) paper",
        "docstring of `CISPOLoss`",
        clipped_token_has_gradient,
        "the code computes the docstring's formula, - clip(ratio) times the advantage, and differentiates the clip: a "
        "token whose ratio is outside the bounds has no gradient. In arXiv:2506.13585 the clipped ratio is a constant "
        "factor of log pi, and every token has one. On policy the two are equal",
    )
    return [
        Row("GRPOLoss(entropy_bonus=False)", partial(GRPO, **QUIET), "score"),
        Row(
            'GRPOLoss(entropy_bonus=False, aggregation="prompt_mean")',
            partial(GRPO, aggregation="prompt_mean", **QUIET),
            "score",
        ),
        Row("GRPOLoss()", GRPO, "score"),
        Row("CISPOLoss(entropy_bonus=False)", partial(GRPO, CISPOLoss, **QUIET), "score", claim=stops),
        Row(f"GRPOLoss(entropy_bonus=False, kl_to_ref_coeff={BETA})", partial(GRPO, **kl, **QUIET), fixed_point=True),
        Row("GRPOLoss(entropy_bonus=False), KL in the reward", partial(GRPO, kl_in_reward=True, **QUIET)),
        Row(
            f"GRPOLoss(entropy_bonus=False, kl_to_ref_coeff={BETA})", partial(GRPO, **kl, **QUIET), "-KL", claim=diluted
        ),
    ]


def clipped_token_has_gradient(_: Report) -> bool:
    """Whether a token whose ratio e is far above the bound has a gradient in `CISPOLoss`, as in arXiv:2506.13585."""
    loss = CISPOLoss(TableActor(), **QUIET)
    log_weight = torch.ones(1, requires_grad=True)
    objective, _fraction = loss._compute_policy_objective(log_weight, torch.ones(1))
    return bool(torch.autograd.grad(objective.sum(), log_weight)[0] != 0)
