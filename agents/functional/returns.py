"""Returns, advantages and masked statistics: pure functions of [B, T] tensors and a mask.

`mask` is True on the tokens that were written. Column t of a row is time t; what stands where the mask is False is
never looked at, so padding changes nothing. Time indices: `rewards[:, t]` is r_t, paid for a_t; `values[:, t]` is
V(s_t), before a_t; V(s_T) = 0, since an answer that was cut at `max_new_tokens` was scored there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]  # the sum of what stands in several processes (`agents.distributed`)


def local_total(x: Tensor) -> Tensor:
    """The total where one process has all answers: x."""
    return x


def masked_mean(x: Tensor, mask: Tensor, total: Total = local_total) -> Tensor:
    """Mean of `x` over the True entries of `mask`: divides by `mask.sum()`, never by B * T."""
    _check(x, mask)
    return total(torch.where(mask, x, 0.0).sum()) / total(mask.sum()).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8, total: Total = local_total) -> Tensor:
    """`(x - mean) / (std + epsilon)` with mean and std over the True entries; 0 elsewhere."""
    mean = masked_mean(x, mask, total)
    variance = masked_mean((x - mean) ** 2, mask, total)
    return torch.where(mask, (x - mean) / (variance.sqrt() + epsilon), 0.0)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """G_t = sum_{l >= 0} gamma^l r_{t+l}: what a token is followed by, [B, T].

    Args:
        rewards: r_t, [B, T].
        mask: bool [B, T]; rewards where it is False count nothing.
        gamma: discount, 1 for text.
    """
    _check(rewards, mask)
    paid = torch.where(mask, rewards, 0.0)
    returns = torch.zeros_like(paid)
    following = torch.zeros_like(paid[:, 0])
    for t in reversed(range(paid.shape[1])):
        following = paid[:, t] + gamma * following
        returns[:, t] = following
    return torch.where(mask, returns, 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, gae_lambda: float = 0.95) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16), [B, T].

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        A_t     = sum_{l >= 0} (gamma lambda)^l delta_{t+l}

    lambda = 0 is the one-step advantage `r_t + gamma V(s_{t+1}) - V(s_t)`; lambda = 1 is `G_t - V(s_t)`.

    Args:
        rewards: r_t, [B, T].
        values: V(s_t), [B, T]. V(s_T) = 0 needs no column.
        mask: bool [B, T], True from the first token that counts to the last one.
        gamma: discount.
        gae_lambda: lambda in [0, 1].
    """
    _check(rewards, mask)
    _check(values, mask)
    values = torch.where(mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    return reward_to_go(deltas, mask, gamma * gae_lambda)


def batch_mean(returns: Tensor, total: Total = local_total) -> Tensor:
    """The mean of all N returns as a baseline for each, [N].

    A return counts in its own baseline, which shrinks the expected gradient by the factor 1 - 1/N.
    """
    everything = torch.ones_like(returns, dtype=torch.bool)
    return masked_mean(returns, everything, total).expand_as(returns)


def leave_one_out(returns: Tensor, num_generations: int) -> Tensor:
    """For each answer the mean return of the *other* answers to the same prompt, [N]: a baseline without bias.

    Kool, van Hoof, Welling 2019; Ahmadian et al. 2024 (RLOO, arXiv:2402.14740).

    Args:
        returns: [N], answers to the same prompt side by side.
        num_generations: answers a prompt, at least 2.

    Raises:
        ValueError: fewer than two answers a prompt, or N is not a multiple of it.
    """
    if num_generations < 2 or len(returns) % num_generations:
        raise ValueError(
            "leave_one_out needs num_generations >= 2 answers to each prompt, side by side; got "
            f"{num_generations} for {len(returns)} returns."
        )
    groups = returns.view(-1, num_generations)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (num_generations - 1)
    return others.view(-1)


def group_relative(returns: Tensor, num_generations: int, scale: bool = True, epsilon: float = 1e-4) -> Tensor:
    """How much better than the other answers to its prompt an answer is, [N] (Shao et al. 2024, arXiv:2402.03300).

    (G - mean) / (std + epsilon) over the group; the mean counts the answer itself, which shrinks the expected gradient
    by 1 - 1/K, and the division weighs prompts by how much their answers differ.

    Args:
        returns: [N], answers to the same prompt side by side.
        num_generations: K, answers a prompt, at least 2.
        scale: divide by the standard deviation (that of a sample, K - 1).
        epsilon: where all answers are paid the same.

    Raises:
        ValueError: fewer than two answers a prompt, or N is not a multiple of it.
    """
    if num_generations < 2 or len(returns) % num_generations:
        raise ValueError(
            "group_relative needs num_generations >= 2 answers to each prompt, side by side; got "
            f"{num_generations} for {len(returns)} returns."
        )
    groups = returns.view(-1, num_generations)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + epsilon) if scale else centred).view(-1)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total = local_total) -> Tensor:
    """1 - Var[G - V] / Var[G] over the True entries: 1 is a perfect critic, 0 one that knows nothing.

    NaN where all returns are equal, but for rounding: nothing is there to explain."""
    returns, values = returns.double(), values.double()

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask, total)) ** 2, mask, total)

    spread = variance(returns)
    some = spread > 1e-24 * masked_mean(returns**2, mask, total)
    return torch.where(some, 1.0 - variance(returns - values) / spread, torch.nan)


def _check(x: Tensor, mask: Tensor) -> None:
    if x.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"Expected a bool mask of the data's shape {tuple(x.shape)}, got {mask.dtype} {tuple(mask.shape)}."
        )
