"""Returns and advantages: pure functions of [B, T] tensors and a mask.

`mask` is True on the sampled tokens. Entries where it is False are never used, so padding changes nothing. A row whose
mask is all False is a completion that is skipped, because its reward failed. Column t is time t: `rewards[:, t]` is
r_t, the reward of a_t; `values[:, t]` is V(s_t), before a_t. V(s_T) = 0: a completion that reaches `max_new_tokens`
terminates and is scored there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]  # sums a tensor over the ranks (`all_reduce_sum` in agents/training/ranks.py)


def local_total(x: Tensor) -> Tensor:
    """The sum over one rank: x itself."""
    return x


def masked_mean(x: Tensor, mask: Tensor, total: Total = local_total) -> Tensor:
    """Mean of `x` over the True entries of `mask`: the divisor is `mask.sum()`, never B * T."""
    check_shapes(mask, x=x)
    return total(torch.where(mask, x, 0.0).sum()) / total(mask.sum()).clamp(min=1)


def check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    """Raises a ValueError unless the mask is bool and all tensors have its shape: nothing broadcasts in silence."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool mask, got {mask.dtype}.")
    for name, x in tensors.items():
        if x.shape != mask.shape:
            raise ValueError(f"{name} must have the shape of the bool mask, {tuple(mask.shape)}, got {tuple(x.shape)}.")


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Reward to go G_t = sum_{l >= 0} gamma^l r_{t+l}, [B, T].

    Args:
        rewards: r_t, [B, T].
        mask: bool [B, T]; rewards where it is False are ignored.
        gamma: discount, 1 for text.
    """
    check_shapes(mask, rewards=rewards)
    rewards = torch.where(mask, rewards, 0.0)
    returns = torch.zeros_like(rewards)
    to_go = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        to_go = rewards[:, t] + gamma * to_go
        returns[:, t] = to_go
    return torch.where(mask, returns, 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 0.95) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16), [B, T].

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        A_t     = sum_{l >= 0} (gamma lambda)^l delta_{t+l}

    lambda = 0 is the one-step advantage `r_t + gamma V(s_{t+1}) - V(s_t)`; lambda = 1 is `G_t - V(s_t)`.

    Args:
        rewards: r_t, [B, T].
        values: V(s_t), [B, T]. V(s_T) = 0 needs no column.
        mask: bool [B, T], True from the first sampled token to the last one.
        gamma: discount.
        gae_lambda: lambda in [0, 1].
    """
    check_shapes(mask, rewards=rewards, values=values)
    values = torch.where(mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    return reward_to_go(deltas, mask, gamma * gae_lambda)


def masked_whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8, total: Total = local_total) -> Tensor:
    """`(x - mean) / (std + epsilon)` with mean and std over the True entries; 0 elsewhere."""
    mean = masked_mean(x, mask, total)
    variance = masked_mean((x - mean) ** 2, mask, total)
    return torch.where(mask, (x - mean) / (variance.sqrt() + epsilon), 0.0)
