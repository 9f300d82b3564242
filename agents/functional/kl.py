"""The KL to the reference: estimators that *measure* it, and a controller of beta.

Estimators of KL(pi || pi_ref) from samples of pi (Schulman, "Approximating KL divergence", 2020), token by token, with
`log_ratio = log pi(a|s) - log pi_ref(a|s)` at a ~ pi:

    k1 = log_ratio                       unbiased, can be negative; the one in the reward (textenv/mdp.py)
    k2 = log_ratio^2 / 2                 biased, never negative, low variance near pi_ref
    k3 = exp(-log_ratio) - 1 + log_ratio unbiased, never negative, low variance near pi_ref

Their gradients are another matter: only k1 in the reward has the gradient of the KL over whole sequences.
`python -m experiments lecture --claims which_kl` measures bias and variance of each. kl_loss.py has them as losses.
"""

from __future__ import annotations

from torch import Tensor

from textenv.arguments import SMALLEST_KL_COEF


def k1(log_ratio: Tensor) -> Tensor:
    """log_ratio, elementwise."""
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """log_ratio^2 / 2, elementwise."""
    return 0.5 * log_ratio**2


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-log_ratio) - 1 + log_ratio, elementwise."""
    return (-log_ratio).exp() - 1.0 + log_ratio


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def adaptive_kl_coef(kl_coef: float, kl: float, target: float, num_episodes: int, horizon: int = 10_000) -> float:
    """Returns beta for the next batch: higher if the KL was above its target, lower if it was below.

        beta <- beta (1 + clip(kl / target - 1, -0.2, 0.2) num_episodes / horizon)

    Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, with `num_episodes / horizon` for the paper's gain K_beta, as
    their code has it. The only fixed point is kl = target. beta does not fall below 1e-30: from 0 it could not rise.

    Args:
        kl_coef: beta of the batch.
        kl: the batch's estimate of the KL over whole sequences, in nats.
        target: the target of that KL, > 0.
        num_episodes: completions in the batch.
        horizon: completions after which beta has changed by a factor of about e^0.2 if the KL stays far off target.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return max(SMALLEST_KL_COEF, kl_coef * (1.0 + error * num_episodes / horizon))
