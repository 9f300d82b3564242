"""The report of `verify`: numbers to assert, and a table to read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from agents.verification.findings import Finding
from agents.verification.measure import Measured
from textenv.html import Html, block_html, number_text, table_html

UNBIASED = 1e-6  # relative bias, in float64
LARGEST_STDERR = 0.1  # of an estimated bias, relative to grad J
STDERRS = 3.0  # of a bias that is estimated
ZERO = 1e-6  # norm of a gradient at pi*, in units of grad J elsewhere


@dataclass(frozen=True)
class Results:
    """A loss on completions of one kind of sampler.

    Attributes:
        by_policy: at each policy.
        at_optimum: at pi*, where grad J is zero; None where pi* has no entropy (beta = 0).
    """

    by_policy: dict[str, Measured]
    at_optimum: Measured | None

    @property
    def bias(self) -> float:
        """The largest |E[gradient] - grad J| / |grad J| of the policies."""
        return max(each.bias for each in self.by_policy.values())

    @property
    def unbiased(self) -> bool:
        """Whether the relative bias is below 1e-6 at every policy.

        For sampled batches: below 3 standard errors, and those at most .1 of grad J, so that a bias could be seen.
        """
        return all(
            each.bias < max(UNBIASED, STDERRS * each.stderr) and each.stderr <= LARGEST_STDERR
            for each in self.by_policy.values()
        )

    @property
    def cosine(self) -> float:
        """The smallest cosine of E[gradient] and grad J of the policies; nan if one has no gradient."""
        return float(np.min([each.cosine for each in self.by_policy.values()]))

    @property
    def noise(self) -> float:
        """The largest standard deviation of the gradient of a batch over |E[gradient]|."""
        return max(each.noise for each in self.by_policy.values())

    @property
    def typical(self) -> float:
        """The largest norm of grad J at a policy."""
        return max(float(each.exact.norm()) for each in self.by_policy.values())

    @property
    def zero_at_optimum(self) -> bool:
        """Whether the expected gradient vanishes at pi*: otherwise the loss leads away from it."""
        if self.at_optimum is None:
            return False
        error = STDERRS * (self.at_optimum.variance / self.at_optimum.num_batches) ** 0.5
        limit = ZERO * max(self.at_optimum.largest, self.typical)
        return float(self.at_optimum.expected.norm()) <= max(limit, error if self.at_optimum.sampled else 0.0)

    @property
    def zero_at_optimum_by_sample(self) -> bool:
        """Whether the gradient of every batch vanishes at pi*, so that there is no noise either."""
        return self.at_optimum is not None and self.at_optimum.largest <= ZERO * self.typical

    @property
    def zero(self) -> str:
        """Whether it vanishes at pi*, in a word."""
        if self.at_optimum is None:
            return "-"
        if self.zero_at_optimum_by_sample:
            return "every batch"
        return "expected" if self.zero_at_optimum else "no"


@dataclass(frozen=True)
class Report(Results):
    """What a loss climbs: the results on completions that each policy has sampled itself, and what else is measured.

    Attributes:
        ordered: whether the loss depends on the order of the completions in a group.
        num_batches: how many batches were enumerated (or sampled) for each policy.
        find_invariances: computes `invariances`.
        find_off_policy: computes `off_policy`.
        find_fixed_point: computes `fixed_point`.
    """

    ordered: bool
    num_batches: int
    find_invariances: Callable[[], dict[str, Finding]] = field(repr=False)
    find_off_policy: Callable[[], dict[str, Results]] = field(repr=False)
    find_fixed_point: Callable[[], float] = field(repr=False)

    @cached_property
    def invariances(self) -> dict[str, Finding]:
        """What must change nothing, and what must get credit, by name. Computed when it is first read."""
        return self.find_invariances()

    @cached_property
    def off_policy(self) -> dict[str, Results]:
        """The same on completions of other samplers, by `behaviours.SAMPLERS`. Computed when it is first read."""
        return self.find_off_policy()

    @cached_property
    def fixed_point(self) -> float:
        """Where the loss leads from the reference, as a share of the way to J*; see `fixed_point.py`.

        Computed when it is first read, which takes longer than all else.
        """
        return self.find_fixed_point()

    def _repr_html_(self) -> Html:
        """What `str` has, as tables; `off_policy` and `fixed_point`, which take seconds, if they were read before."""
        rows: list[list[str | float | None]] = [
            [name, each.bias, each.stderr or None, each.cosine, each.noise, ""] for name, each in self.by_policy.items()
        ]
        rows.append(["worst", self.bias, None, self.cosine, self.noise, self.zero])
        others = self.off_policy if "off_policy" in vars(self) else {}
        rows += [[name, x.bias, None, x.cosine, x.noise, x.zero] for name, x in others.items()]
        findings = [[each.name, str(each).removeprefix(f"{each.name}: ")] for each in self.invariances.values()]
        claims = [["unbiased", self.describe_bias()], ["zero at pi*", self._zero()], *findings]
        if "fixed_point" in vars(self):
            claims.append(["fixed point", self._fixed_point()])
        missing = [f".{name}" for name in ("off_policy", "fixed_point") if name not in vars(self)]
        order = ", in each order of a group" if self.ordered else ""
        header = ["completions of", "bias", "standard error", "cosine", "noise", "zero at pi*"]
        return block_html(
            f"{number_text(self.num_batches)} batches{order}",
            table_html(header, rows, limit=len(rows)),
            table_html(["", "what the loss does"], claims, limit=len(claims)),
            *([f"not computed yet, read or print to do so: {', '.join(missing)}"] if missing else []),
        )

    def __str__(self) -> str:
        lines = [
            f"{self.num_batches:,} batches" + (", in each order of a group" if self.ordered else ""),
            f"{'completions of':<24}{'bias':>12}{'cosine':>10}{'noise':>10}   zero at pi*",
            *(_row(name, each.bias, each.stderr, each.cosine, each.noise) for name, each in self.by_policy.items()),
            _row("worst", self.bias, 0.0, self.cosine, self.noise) + f"   {self.zero}",
            *(_row(name, x.bias, 0.0, x.cosine, x.noise) + f"   {x.zero}" for name, x in self.off_policy.items()),
            f"unbiased: {self.describe_bias()}",
            f"zero at pi*: {self._zero()}",
            f"fixed point: {self._fixed_point()}",
            *map(str, self.invariances.values()),
        ]
        return "\n".join(lines)

    def describe_bias(self) -> str:
        """Whether the loss is unbiased, or by how much not and what usually causes it, in a sentence."""
        error = max(each.stderr for each in self.by_policy.values())
        if error > LARGEST_STDERR:
            return (
                f"not known: the standard error is {error:.2g} of grad J, of {self.num_batches:,} batches; sample more"
            )
        if self.unbiased:
            return "holds" if error == 0 else f"holds within 3 standard errors, of up to {error:.3g} of grad J"
        if all(abs(each.cosine - 1) < UNBIASED for each in self.by_policy.values()):
            scale = [float(each.expected.norm() / each.exact.norm()) for each in self.by_policy.values()]
            return (
                f"but for a factor of {min(scale):.3g} to {max(scale):.3g}: usually a baseline that contains the "
                "completion itself, a sum or a mean over a constant number, or a scaled advantage"
            )
        if self.cosine < -0.9:
            return f"no, it goes down J (cosine {self.cosine:.3g}): usually a sign, or a ratio the wrong way round"
        return (
            f"no, off by up to {self.bias:.3g} of grad J: usually a divisor that depends on the samples (lengths, a "
            "standard deviation), a KL whose gradient is another divergence's, or a shifted column"
        )

    def _fixed_point(self) -> str:
        if math.isnan(self.fixed_point):
            return "none is reached from the reference: usually a loss without a KL, or against it"
        estimated = any(each.sampled for each in self.by_policy.values())
        return f"{self.fixed_point:.1%} of the way from the reference to the optimum" + ", estimated" * estimated

    def _zero(self) -> str:
        if self.at_optimum is None:
            return "not tested, since pi* has no entropy where beta is 0"
        if self.zero_at_optimum_by_sample:
            return "holds, for every batch"
        if self.zero_at_optimum:
            return "holds, in expectation"
        share = float(self.at_optimum.expected.norm()) / self.typical
        return f"no: its gradient there is {share:.3g} of grad J elsewhere"


def _row(name: str, bias: float, stderr: float, cosine: float, noise: float) -> str:
    shown = "0" if bias < UNBIASED else f"{bias:.3g}" + (f"+-{stderr:.2g}" if stderr > 0 else "")
    alignment = "-" if math.isnan(cosine) else f"{cosine:.4f}"
    return f"{name:<24}{shown:>12}{alignment:>10}{noise:>10.3g}"
