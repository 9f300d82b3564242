"""A row of the table: one setting of another library's loss, and what it climbs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agents.files import JsonObject
from agents.verification import OtherSampler, Report, reference, verify
from experiments.peers.toys import OBJECTIVES

EXACT = 1e-6  # of a cosine, and of a relative bias
REFERENCE = "the reference"  # whose completions the numbers "off policy" have


@dataclass(frozen=True)
class Claim:
    """What the library's documentation states about a setting.

    Attributes:
        text: quoted from the documentation of the version that was measured.
        where: file or page, with the version.
        holds: whether the measurement agrees.
        found: what was measured, in a sentence.
    """

    text: str
    where: str
    holds: Callable[[Report], bool]
    found: str


@dataclass(frozen=True)
class Row:
    """A setting.

    Attributes:
        setting: as a user of the library writes it.
        loss: makes the loss, for `verify`.
        objective: J, with which it is compared; a key of `OBJECTIVES`.
        num_generations: completions per batch.
        fixed_point: measure where the loss leads; only where J has a KL.
        claim: of the documentation.
    """

    setting: str
    loss: Callable[[], Callable[..., Any]]
    objective: str = "score - KL"
    num_generations: int = 2
    fixed_point: bool = False
    claim: Claim | None = None


def exact_direction(report: Report) -> bool:
    """Whether the expected gradient is that of J, up to a factor, at every policy."""
    return report.cosine > 1 - EXACT


def exact_direction_off_policy(report: Report) -> bool:
    """The same on completions of the reference."""
    return report.off_policy[REFERENCE].cosine > 1 - EXACT


def fixed_point(report: Report) -> float | str:
    """Where the loss leads, or "none"."""
    return "none" if math.isnan(report.fixed_point) else report.fixed_point


def measure(row: Row) -> JsonObject:
    """Everything that the table shows of a row."""
    start = time.perf_counter()
    samplers = {REFERENCE: OtherSampler(reference)}
    report = verify(row.loss(), OBJECTIVES[row.objective](), num_generations=row.num_generations, samplers=samplers)
    off_policy = report.off_policy[REFERENCE].by_policy
    has_kl = row.objective.startswith("score - KL")
    found: JsonObject = {
        "setting": row.setting,
        "objective": row.objective,
        "num_generations": row.num_generations,
        "num_batches": report.num_batches,
        "bias": {name: each.bias for name, each in report.by_policy.items()},
        "cosine": {name: each.cosine for name, each in report.by_policy.items()},
        "noise": {name: each.noise for name, each in report.by_policy.items()},
        "off_policy_bias": {name: each.bias for name, each in off_policy.items()},
        "off_policy_cosine": {name: each.cosine for name, each in off_policy.items()},
        # without a KL pi* has no entropy, and every gradient vanishes there
        "zero_at_optimum": report.zero_at_optimum if has_kl else None,
        "fixed_point": fixed_point(report) if row.fixed_point else None,
        "claim": None,
    }
    if row.claim is not None:
        claim = row.claim
        found["claim"] = {"text": claim.text, "where": claim.where, "holds": claim.holds(report), "found": claim.found}
    return found | {"seconds": time.perf_counter() - start}
