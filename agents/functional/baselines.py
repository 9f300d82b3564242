"""Baselines from the returns of other completions: pure functions of returns [N], one for each completion.

`valid` [N] is False for completions that are skipped, because their reward failed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.functional.precision import widen
from agents.functional.returns import Total, local_total, masked_mean


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
    groups, valid = _as_groups("leave_one_out", returns, num_generations, valid)
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
    groups, valid = _as_groups("group_relative", returns, num_generations, valid)
    count = valid.sum(dim=1, keepdim=True).to(returns.dtype)
    mean = _group_sums(groups, valid) / count.clamp(min=1)
    centred = torch.where(valid, groups - mean, 0.0)
    if not scale:
        return centred.view(-1)
    # With the mean in the place of a skipped return the sum of squares is that of the others.
    # In float64, where the squares of large returns are finite: an infinite std would make advantages 0 in silence.
    std = widen(torch.where(valid, groups, mean)).std(dim=1, keepdim=True).to(returns.dtype)
    std = std * ((num_generations - 1) / (count - 1).clamp(min=1)).sqrt()
    return (centred / (std + epsilon)).view(-1)


def _as_groups(name: str, returns: Tensor, num_generations: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns and their mask with a row for each group, [N / K, K]; raises a ValueError in the name of a function."""
    if num_generations < 2 or len(returns) % num_generations:
        raise ValueError(
            f"{name} needs num_generations >= 2 contiguous completions of each prompt, got "
            f"{num_generations} for {len(returns)} returns."
        )
    valid = torch.ones_like(returns, dtype=torch.bool) if valid is None else valid
    return returns.view(-1, num_generations), valid.view(-1, num_generations)


def _group_sums(groups: Tensor, valid: Tensor) -> Tensor:
    """Sums over the valid entries of each group, [N / K, 1], from [N / K, K]."""
    of_valid = torch.where(valid, groups, 0.0).sum(dim=1, keepdim=True)
    # Whole groups are summed as they lie in memory: the rounding is the same as without a mask.
    return torch.where(valid.all(dim=1, keepdim=True), groups.sum(dim=1, keepdim=True), of_valid)
