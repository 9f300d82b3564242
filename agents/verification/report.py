"""The report of `verify`: numbers to assert, and a table to read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from agents.verification.measure import Measured

UNBIASED = 1e-6  # relative bias, in float64
ZERO = 1e-6  # norm of a gradient at pi*, in units of the largest of a batch there


@dataclass(frozen=True)
class Report:
    """What a loss climbs.

    Attributes:
        by_policy: at each policy, on completions that it has sampled itself.
        off_policy: at each policy, on completions of the reference.
        at_optimum: at pi*, where grad J is zero.
        ordered: whether the loss depends on the order of the completions in a group.
        num_batches: how many batches were enumerated, for each policy.
        find_fixed_point: computes `fixed_point`, which takes longer than all else.
    """

    by_policy: dict[str, Measured]
    off_policy: dict[str, Measured]
    at_optimum: Measured
    ordered: bool
    num_batches: int
    find_fixed_point: Callable[[], float] = field(repr=False)

    @property
    def bias(self) -> float:
        """The largest |E[gradient] - grad J| / |grad J| of the policies."""
        return max(each.bias for each in self.by_policy.values())

    @property
    def unbiased(self) -> bool:
        """Whether the relative bias is below 1e-6 at every policy."""
        return self.bias < UNBIASED

    @property
    def cosine(self) -> float:
        """The smallest cosine of E[gradient] and grad J of the policies; nan if one has no gradient."""
        return float(np.min([each.cosine for each in self.by_policy.values()]))

    @property
    def noise(self) -> float:
        """The largest standard deviation of the gradient of a batch over |E[gradient]|."""
        return max(each.noise for each in self.by_policy.values())

    @cached_property
    def fixed_point(self) -> float:
        """Where the loss leads from the reference, as a share of the way to J*; see `fixed_point.py`."""
        return self.find_fixed_point()

    @property
    def zero_at_optimum(self) -> bool:
        """Whether the expected gradient vanishes at pi*: otherwise the loss leads away from it."""
        return float(self.at_optimum.expected.norm()) <= ZERO * max(self.at_optimum.largest, self._typical)

    @property
    def zero_at_optimum_by_sample(self) -> bool:
        """Whether the gradient of every batch vanishes at pi*, so that there is no noise either."""
        return self.at_optimum.largest <= ZERO * self._typical

    @property
    def _typical(self) -> float:
        """The norm of grad J at a policy."""
        return max(float(each.exact.norm()) for each in self.by_policy.values())

    def __str__(self) -> str:
        lines = [
            f"{self.num_batches:,} batches" + (", in each order of a group" if self.ordered else ""),
            f"{'policy':<14}{'bias':>10}{'cosine':>10}{'noise':>10}   of completions that the policy has sampled",
            *(self._row(name, each) for name, each in self.by_policy.items()),
            f"{'policy':<14}{'bias':>10}{'cosine':>10}{'noise':>10}   of completions of the reference",
            *(self._row(name, each) for name, each in self.off_policy.items()),
            f"unbiased: {self._unbiased()}",
            f"zero at pi*: {self._zero()}",
            f"fixed point: {self._fixed_point()}",
        ]
        return "\n".join(lines)

    @staticmethod
    def _row(name: str, each: Measured) -> str:
        bias = "0" if each.bias < UNBIASED else f"{each.bias:.3g}"
        cosine = "-" if math.isnan(each.cosine) else f"{each.cosine:.4f}"
        return f"{name:<14}{bias:>10}{cosine:>10}{each.noise:>10.3g}"

    def _unbiased(self) -> str:
        if self.unbiased:
            return "holds"
        if all(abs(each.cosine - 1) < UNBIASED for each in self.by_policy.values()):
            scale = [float(each.expected.norm() / each.exact.norm()) for each in self.by_policy.values()]
            return (
                f"but for a factor of {min(scale):.3g} to {max(scale):.3g}: usually a baseline that contains the "
                "completion itself, a mean over a constant number, or a scaled advantage"
            )
        return (
            f"off by up to {self.bias:.3g} of grad J: usually a divisor that depends on the samples (lengths, a "
            "standard deviation), a KL whose gradient is another divergence's, or a shifted column"
        )

    def _fixed_point(self) -> str:
        if math.isnan(self.fixed_point):
            return "none is reached from the reference: usually a loss without a KL, or against it"
        return f"{self.fixed_point:.1%} of the way from the reference to the optimum"

    def _zero(self) -> str:
        if self.zero_at_optimum_by_sample:
            return "holds, for every batch"
        if self.zero_at_optimum:
            return "holds, in expectation"
        share = float(self.at_optimum.expected.norm()) / self._typical
        return f"no: its gradient there is {share:.3g} of grad J elsewhere"
