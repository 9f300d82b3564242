"""The expectation and the noise of a gradient over all batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.verification.batches import Batches
from agents.verification.cases import Case
from agents.verification.loss import BatchGradient

NEGLIGIBLE = 1e-12  # a norm, in units of that of another gradient


@dataclass(frozen=True)
class Measured:
    """A loss at one policy pi, beside grad J. A gradient here is that of -loss: the direction that the loss climbs.

    Attributes:
        expected: E[gradient], [P].
        exact: grad J, [P].
        variance: E |gradient - E[gradient]|^2.
        largest: the largest norm of the gradient of a batch that can be sampled.
    """

    expected: Tensor
    exact: Tensor
    variance: float
    largest: float

    @property
    def bias(self) -> float:
        """|E[gradient] - grad J| / |grad J|."""
        return float((self.expected - self.exact).norm() / self.exact.norm())

    @property
    def cosine(self) -> float:
        """The cosine of E[gradient] and grad J; nan where E[gradient] is zero up to rounding."""
        norms = float(self.expected.norm() * self.exact.norm())
        if self.expected.norm() <= NEGLIGIBLE * self.exact.norm():
            return float("nan")
        return float(self.expected @ self.exact) / norms

    @property
    def noise(self) -> float:
        """The standard deviation of the gradient over |E[gradient]|; inf where that is zero."""
        norm = float(self.expected.norm())
        return self.variance**0.5 / norm if norm > 0 else float("inf")


def measure(gradient: BatchGradient, case: Case, batches: Batches, behaviour: Case) -> Measured:
    """Computes the gradient of every batch.

    Args:
        gradient: of the loss, on completions of the behaviour policy.
        case: pi, at which the gradient is taken.
        batches: all batches.
        behaviour: the policy that samples the completions.
    """
    completions = behaviour.completions
    pi = completions.probability * len(completions.tree.mdp.prompts.texts)
    probability = batches.probability(pi)
    first, second, largest = torch.zeros_like(case.exact_gradient), 0.0, 0.0
    for rows, p in zip(batches.rows, probability.tolist(), strict=True):
        if p > 0:
            found = -case.by_parameters(gradient(rows, case.log_probs))
            squared = float(found @ found)
            first, second, largest = first + p * found, second + p * squared, max(largest, squared**0.5)
    return Measured(first, case.exact_gradient, max(0.0, second - float(first @ first)), largest)


def depends_on_order(gradient: BatchGradient, case: Case, batches: Batches, num_generations: int) -> bool:
    """Whether the gradient of a batch changes where the completions within its groups are reversed."""
    for rows in batches.rows[:: max(1, len(batches.rows) // 20)]:
        reversed_rows = rows.view(-1, num_generations).flip(1).flatten()
        one, other = (gradient(each, case.log_probs) for each in (rows, reversed_rows))
        if not torch.allclose(one, other, rtol=1e-9, atol=1e-12):
            return True
    return False
