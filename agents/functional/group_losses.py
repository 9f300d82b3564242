"""The losses of GRPO and its successors: pure functions of [B, T] tensors and a mask.

    loss = - 1/B sum_i sum_t c_i f(rho_t, A_t)

with rho_t of `importance_log_ratio`. They differ in the surrogate f of a token and the weight c_i of a completion y_i:

    name     f                                        c_i           source
    dr_grpo  min(rho A, clip(rho) A)                  1             Liu et al. 2025, arXiv:2503.20783
    grpo     min(rho A, clip(rho) A)                  1 / |y_i|     Shao et al. 2024, arXiv:2402.03300, eq. 3
    dapo     min(rho A, clip(rho) A)                  1 / mean |y|  Yu et al. 2025, arXiv:2503.14476
    gspo     min(s A, clip(s) A), s = rho(y)^(1/|y|)  1 / |y_i|     Zheng et al. 2025, arXiv:2507.18071
    cispo    sg(min(rho, 1 + eps_high)) A log pi      1 / mean |y|  MiniMax 2025, arXiv:2506.13585, eq. 4
    sapo     4 / tau sigmoid(tau (rho - 1)) A         1 / |y_i|     Gao et al. 2025, arXiv:2511.20347

clip(rho) is to [1 - eps, 1 + eps_high], sg is stop-gradient. 1 / mean |y| divides the sum over all tokens of the batch
by their number. Only c_i = 1 leaves the policy gradient as it is: the others depend on the lengths that were sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from agents.functional.importance import Level, importance_log_ratio
from agents.functional.losses import clipped_surrogate, mean_over_completions
from agents.functional.precision import widen, widest_float
from agents.functional.returns import check_shapes

GroupLossName = Literal["dr_grpo", "grpo", "dapo", "gspo", "cispo", "sapo"]
Surrogate = Callable[[Tensor, Tensor, float | None, float | None], Tensor]
SAPO_TEMPERATURES = (1.0, 1.05)  # tau where A > 0 and elsewhere, as in the paper and TRL


def cispo_surrogate(
    log_ratio: Tensor, advantages: Tensor, clip_range: float | None, clip_range_high: float | None = None
) -> Tensor:
    """sg(min(rho_t, 1 + eps_high)) A_t log rho_t of each token, [B, T]: the weight is clipped, no gradient is lost.

    log rho_t has the gradient of log pi(a_t|s_t). As in the paper's experiments there is no lower bound. (TRL's
    `epsilon_high` is the bound itself, eps_high + 1.)
    """
    weights = log_ratio.detach().exp()
    high = clip_range if clip_range_high is None else clip_range_high
    if high is not None:
        weights = weights.clamp(max=1.0 + high)
    return weights * advantages * log_ratio


def sapo_surrogate(
    log_ratio: Tensor,
    advantages: Tensor,
    clip_range: float | None = None,
    clip_range_high: float | None = None,
    temperatures: tuple[float, float] = SAPO_TEMPERATURES,
) -> Tensor:
    """4 / tau sigmoid(tau (rho_t - 1)) A_t of each token, [B, T]: a smooth clip, whose slope by rho is 1 at rho = 1.

    tau is `temperatures[0]` where A_t > 0 and `temperatures[1]` elsewhere. There is no other clip.
    """
    positive, other = temperatures
    tau = torch.full_like(advantages, other).masked_fill(advantages > 0, positive)
    return 4.0 / tau * torch.sigmoid(tau * (log_ratio.exp() - 1.0)) * advantages


def whole(mask: Tensor, mean_length: Tensor) -> Tensor:
    """c_i = 1, [B, 1]: the sum over a completion's tokens."""
    return torch.ones_like(mask[:, :1], dtype=widest_float(mask.device))


def by_length(mask: Tensor, mean_length: Tensor) -> Tensor:
    """c_i = 1 / |y_i|, [B, 1]: the mean over a completion's tokens."""
    return 1.0 / widen(mask.sum(dim=1, keepdim=True).clamp(min=1))


def by_mean_length(mask: Tensor, mean_length: Tensor) -> Tensor:
    """c_i = 1 / mean |y|, [B, 1]: the mean over all tokens of the batch."""
    return (1.0 / mean_length).expand(len(mask), 1)


class GroupLoss(NamedTuple):
    """A row of the table in this file's docstring.

    Attributes:
        surrogate: f of each token, [B, T], from log rho_t and A_t, [B, T], eps and eps_high.
        weights: c_i, [B, 1], from the mask [B, T] and the mean length of the batch's completions.
        importance: what rho_t is the product over; None leaves the choice.
    """

    surrogate: Surrogate
    weights: Callable[[Tensor, Tensor], Tensor]
    importance: Level | None = None


GROUP_LOSSES: dict[GroupLossName, GroupLoss] = {
    "dr_grpo": GroupLoss(clipped_surrogate, whole),
    "grpo": GroupLoss(clipped_surrogate, by_length),
    "dapo": GroupLoss(clipped_surrogate, by_mean_length),
    "gspo": GroupLoss(clipped_surrogate, by_length, "geometric"),
    "cispo": GroupLoss(cispo_surrogate, by_mean_length),
    "sapo": GroupLoss(sapo_surrogate, by_length),
}


def completion_weights(name: GroupLossName, mask: Tensor, mean_length: Tensor | None = None) -> Tensor:
    """c_i of a loss by its name, float64 [B, 1] (float32 where the device has no float64).

    Args:
        name: the loss.
        mask: bool [B, T].
        mean_length: the mean number of tokens of the batch's completions, of which these may be those of a rank; None
            is that of these. dapo and cispo divide by it.
    """
    if mean_length is None:
        mean_length = widen(mask.sum()) / mask.any(dim=1).sum().clamp(min=1)
    return GROUP_LOSSES[name].weights(mask, mean_length)


def group_loss(
    name: GroupLossName,
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float | None = 0.2,
    clip_range_high: float | None = None,
    importance: Level = "token",
    weights: Tensor | None = None,
) -> Tensor:
    """- 1/B sum_i sum_t c_i f(rho_t, A_t), by the table in this file's docstring; a scalar.

    Args:
        name: the loss.
        log_probs: log pi(a_t|s_t), with gradient, [B, T].
        old_log_probs: log pi_old(a_t|s_t) of the behaviour policy, [B, T].
        advantages: A_t, [B, T]; detached.
        mask: bool [B, T]. A row that is all False is a completion that is skipped.
        clip_range: eps; None is no clip. gspo's authors use 3e-4, and 4e-4 for eps_high.
        clip_range_high: eps_high; None is eps.
        importance: what rho_t is the product over; gspo has its own.
        weights: c_i, [B, 1], where these are some completions of a batch; None is `completion_weights` of these.
    """
    check_shapes(mask, advantages=advantages)
    row = GROUP_LOSSES[name]
    log_ratio = importance_log_ratio(log_probs, old_log_probs, mask, row.importance or importance)
    surrogate = row.surrogate(log_ratio, advantages.detach(), clip_range, clip_range_high)
    if weights is None:
        weights = completion_weights(name, mask)
    return -mean_over_completions(weights.to(surrogate.dtype) * surrogate, mask)
