"""The expectation and the noise of a gradient over batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.verification.batches import Batches, SampledBatches
from agents.verification.cases import Case
from agents.verification.loss import BatchGradient
from agents.verification.samples import Sample

NEGLIGIBLE = 1e-12  # a norm, in units of that of another gradient
CHUNK = 512  # batches that are selected together
MAX_ENTRIES = 1 << 22  # numbers in the gradients of some batches that are in memory together


@dataclass(frozen=True)
class Measured:
    """A loss at one policy pi, beside grad J. A gradient here is that of -loss: the direction that the loss climbs.

    Attributes:
        expected: E[gradient], [P].
        exact: grad J, [P].
        variance: E |gradient - E[gradient]|^2.
        largest: the largest norm of the gradient of a batch that can be sampled.
        num_batches: of how many batches.
        sampled: whether the batches were sampled, so that `expected` is an estimate.
    """

    expected: Tensor
    exact: Tensor
    variance: float
    largest: float
    num_batches: int
    sampled: bool

    @property
    def bias(self) -> float:
        """|E[gradient] - grad J| / |grad J|."""
        return float((self.expected - self.exact).norm() / self.exact.norm())

    @property
    def stderr(self) -> float:
        """The standard error of `expected`, as a norm and relative to |grad J|; 0 where all batches were enumerated."""
        return (self.variance / self.num_batches) ** 0.5 / float(self.exact.norm()) if self.sampled else 0.0

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


def measure(gradient: BatchGradient, case: Case, sample: Sample, pi: Tensor, batches: Batches) -> Measured:
    """Computes the gradient of every batch.

    Args:
        gradient: of the loss.
        case: pi, at which the gradient is taken.
        sample: all N completions, of the behaviour policy.
        pi: the behaviour policy's pi(y|x) of each completion, [N].
        batches: the batches.
    """
    rows, weights = batches.weighted(pi)
    first, second, largest = torch.zeros_like(case.exact_gradient), 0.0, 0.0
    size = max(1, min(CHUNK, MAX_ENTRIES // max(case.log_probs.numel(), len(first))))
    for some, p in zip(rows.split(size), weights.split(size), strict=True):  # type: ignore[no-untyped-call]
        tables = torch.zeros(len(some), *case.log_probs.shape, dtype=torch.float64)
        for table, each in zip(tables, sample.batches(some), strict=True):
            add_to_table(table, each, gradient)
        found = -case.by_parameters(tables)
        squared = found.square().sum(dim=1)
        first, second = first + p @ found, second + float(p @ squared)
        largest = max(largest, float(squared.max()) ** 0.5)
    variance = max(0.0, second - float(first @ first))
    return Measured(first, case.exact_gradient, variance, largest, len(rows), isinstance(batches, SampledBatches))


def add_to_table(table: Tensor, sample: Sample, gradient: BatchGradient) -> None:
    """Adds the gradient of a batch to that by the table log pi(a|s), [S, V]; that of padding is due to no state."""
    found, width, mask = gradient(sample), table.shape[1], sample.rollout.mask
    table.view(-1).index_add_(0, (sample.states * width + sample.actions)[mask], found.log_probs[mask])
    if found.all_log_probs is not None:
        table.index_add_(0, sample.states[mask], found.all_log_probs[mask])


def depends_on_order(gradient: BatchGradient, sample: Sample, rows: Tensor, num_generations: int) -> bool:
    """Whether the gradient of a batch changes with the order within its groups.

    A swap of the first two and a shift of all by one are tried: they generate every order.

    Args:
        gradient: of the loss.
        sample: all N completions.
        rows: batches, int64 [M, B], of which some are tried.
        num_generations: K, completions per group.
    """
    rows = rows[:: max(1, len(rows) // 20)]
    places = torch.arange(rows.shape[1]).view(-1, num_generations)
    swapped = torch.cat([places[:, :2].flip(1), places[:, 2:]], dim=1)
    for order in (swapped.flatten(), places.roll(1, dims=1).flatten()):
        for one, other in zip(sample.batches(rows), sample.batches(rows[:, order]), strict=True):
            found, reordered = (gradient(each).by_token(each) for each in (one, other))
            if not torch.allclose(found[order], reordered, rtol=1e-9, atol=1e-12):
                return True
    return False
