"""Returns, advantages and masked statistics: pure functions of [B, T] tensors and a mask.

`mask` is True on the sampled tokens. Entries where it is False are never used, so padding changes nothing. A row whose
mask is all False is a completion that is skipped, because its reward failed; functions of returns [N] take
`valid` [N], which is False there. Column t is
time t: `rewards[:, t]` is r_t, the reward of a_t; `values[:, t]` is V(s_t), before a_t. V(s_T) = 0: a completion that
reaches `max_new_tokens` terminates and is scored there.
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
    _check(x, mask)
    return total(torch.where(mask, x, 0.0).sum()) / total(mask.sum()).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, epsilon: float = 1e-8, total: Total = local_total) -> Tensor:
    """`(x - mean) / (std + epsilon)` with mean and std over the True entries; 0 elsewhere."""
    mean = masked_mean(x, mask, total)
    variance = masked_mean((x - mean) ** 2, mask, total)
    return torch.where(mask, (x - mean) / (variance.sqrt() + epsilon), 0.0)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """Reward to go G_t = sum_{l >= 0} gamma^l r_{t+l}, [B, T].

    Args:
        rewards: r_t, [B, T].
        mask: bool [B, T]; rewards where it is False are ignored.
        gamma: discount, 1 for text.
    """
    _check(rewards, mask)
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
    _check(rewards, mask)
    _check(values, mask)
    values = torch.where(mask, values, 0.0)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + gamma * next_values - values
    return reward_to_go(deltas, mask, gamma * gae_lambda)


def batch_mean(returns: Tensor, total: Total = local_total, valid: Tensor | None = None) -> Tensor:
    """The mean of all N returns as the baseline of each, [N].

    Each return is part of its own baseline, which shrinks the expected gradient by the factor 1 - 1/N.
    """
    valid = torch.ones_like(returns, dtype=torch.bool) if valid is None else valid
    return masked_mean(returns, valid, total).expand_as(returns)


def in_groups(valid: Tensor, num_generations: int) -> Tensor:
    """`valid` without the groups that have fewer than two completions left, bool [N]: nothing compares those."""
    groups = valid.view(-1, num_generations)
    return (groups & (groups.sum(dim=1, keepdim=True) >= 2)).view(-1)


def leave_one_out(returns: Tensor, num_generations: int, valid: Tensor | None = None) -> Tensor:
    """For each completion the mean return of the *others* in its group, [N]: a baseline without bias.

    Kool, van Hoof, Welling 2019; Ahmadian et al. 2024 (RLOO, arXiv:2402.14740).

    Args:
        returns: [N]; the completions of one prompt are contiguous.
        num_generations: completions per prompt, at least 2.
        valid: bool [N], False for completions that are skipped; None if there are none. The baseline is 0 for these,
            and for the only one left of a group, which `in_groups` leaves out.

    Raises:
        ValueError: fewer than two completions per prompt, or N is not a multiple of it.
    """
    if num_generations < 2 or len(returns) % num_generations:
        raise ValueError(
            "leave_one_out needs num_generations >= 2 contiguous completions of each prompt, got "
            f"{num_generations} for {len(returns)} returns."
        )
    valid = (torch.ones_like(returns, dtype=torch.bool) if valid is None else valid).view(-1, num_generations)
    groups = returns.view(-1, num_generations)
    others = (valid.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return torch.where(valid, (_group_sums(groups, valid) - groups) / others, 0.0).view(-1)


def group_relative(
    returns: Tensor, num_generations: int, scale: bool = True, epsilon: float = 1e-4, valid: Tensor | None = None
) -> Tensor:
    """Advantage of each completion relative to its group, [N] (Shao et al. 2024, arXiv:2402.03300).

    (G - mean) / (std + epsilon) over the group. The mean includes the completion itself, which shrinks the expected
    gradient by the factor 1 - 1/K. The division gives a prompt more weight the less its completions' returns differ.

    Args:
        returns: [N]; the completions of one prompt are contiguous.
        num_generations: K, completions per prompt, at least 2.
        scale: divide by the standard deviation (that of a sample, K - 1).
        epsilon: avoids a division by zero where all returns of a group are equal.
        valid: bool [N], False for completions that are skipped; None if there are none. The advantage is 0 for these,
            and for the only one left of a group, which `in_groups` leaves out.

    Raises:
        ValueError: fewer than two completions per prompt, or N is not a multiple of it.
    """
    if num_generations < 2 or len(returns) % num_generations:
        raise ValueError(
            "group_relative needs num_generations >= 2 contiguous completions of each prompt, got "
            f"{num_generations} for {len(returns)} returns."
        )
    valid = (torch.ones_like(returns, dtype=torch.bool) if valid is None else valid).view(-1, num_generations)
    groups = returns.view(-1, num_generations)
    count = valid.sum(dim=1, keepdim=True).to(returns.dtype)
    mean = _group_sums(groups, valid) / count.clamp(min=1)
    centred = torch.where(valid, groups - mean, 0.0)
    if not scale:
        return centred.view(-1)
    # With the mean in the place of a skipped return the sum of squares is that of the others.
    # In float64, where the squares of large returns are finite: an infinite std would make advantages 0 in silence.
    std = torch.where(valid, groups, mean).double().std(dim=1, keepdim=True).to(returns.dtype)
    std = std * ((num_generations - 1) / (count - 1).clamp(min=1)).sqrt()
    return (centred / (std + epsilon)).view(-1)


def _group_sums(groups: Tensor, valid: Tensor) -> Tensor:
    """Sums over the valid entries of each group, [N / K, 1], from [N / K, K]."""
    of_valid = torch.where(valid, groups, 0.0).sum(dim=1, keepdim=True)
    # Whole groups are summed as they lie in memory: the rounding is the same as without a mask.
    return torch.where(valid.all(dim=1, keepdim=True), groups.sum(dim=1, keepdim=True), of_valid)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, total: Total = local_total) -> Tensor:
    """1 - Var[G - V] / Var[G] over the True entries: 1 for a perfect critic, 0 for a constant one.

    NaN where all returns are equal up to rounding: there is no variance to explain.
    """
    returns, values = returns.double(), values.double()

    def variance(x: Tensor) -> Tensor:
        return masked_mean((x - masked_mean(x, mask, total)) ** 2, mask, total)

    return_variance = variance(returns)
    varies = return_variance > 1e-24 * masked_mean(returns**2, mask, total)
    return torch.where(varies, 1.0 - variance(returns - values) / return_variance, torch.nan)


def _check(x: Tensor, mask: Tensor) -> None:
    if x.shape != mask.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"Expected a bool mask of the data's shape {tuple(x.shape)}, got {mask.dtype} {tuple(mask.shape)}."
        )
