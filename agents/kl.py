"""Estimators of KL(pi || pi_ref) from samples of pi, for *measuring* (Schulman, "Approximating KL divergence", 2020).

With `log_ratio = log pi(a|s) - log pi_ref(a|s)` at a ~ pi:

    k1 = log_ratio                       unbiased, can be negative; the one in the reward (textenv.process)
    k2 = log_ratio^2 / 2                 biased, low variance, never negative
    k3 = exp(-log_ratio) - 1 + log_ratio unbiased, low variance, never negative

In the reward only k1 has the gradient of the KL over whole texts; as a loss none has it but k2 on a single step.
"""

from __future__ import annotations

from torch import Tensor


def k1(log_ratio: Tensor) -> Tensor:
    """log_ratio, elementwise."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """log_ratio^2 / 2, elementwise."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-log_ratio) - 1 + log_ratio, elementwise."""
    return (-log_ratio).exp() - 1.0 + log_ratio
