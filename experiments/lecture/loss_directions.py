"""What each loss climbs: its expected gradient beside that of J, over every batch of two completions of a toy.

    expected = - sum_batches p(batch) grad loss(batch)

What is measured is the update of our agents with the settings of each loss, see loss_rows.py; the direction is the
cosine of its expectation with grad J, the noise the standard deviation of a batch's gradient over the norm of the mean.
"older" has completions of a policy halfway to the reference. The fixed point is where the loss leads from the
reference, as a share of the way to J*.
"""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from agents.files import JsonObject
from agents.verification import OtherSampler, older, verify
from experiments.lecture.loss_rows import LOSSES
from experiments.lecture.memo import Remember, no_memo

POLICIES = ("near", "far", "independent")


def measure(memo: Remember = no_memo) -> JsonObject:
    """The numbers of each loss, by its name."""
    return {name: memo(name, partial(climbed, name)) for name in LOSSES}


def climbed(name: str) -> JsonObject:
    """What `verify` finds of a loss; None where a number does not exist."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=1, kl_coef=0.2)
    report = verify(LOSSES[name], env, num_generations=2, samplers={"older": OtherSampler(older)})
    other = report.off_policy["older"]
    return {
        "cosine": {policy: _number(report.by_policy[policy].cosine) for policy in POLICIES},
        "noise": {policy: _number(report.by_policy[policy].noise) for policy in POLICIES},
        "bias": report.bias,
        "unbiased": report.unbiased,
        "zero at pi*": report.zero,
        "older": {policy: _number(other.by_policy[policy].cosine) for policy in POLICIES},
        "fixed point": _number(report.fixed_point),
        "broken": [name for name, each in report.invariances.items() if each.broken],
    }


def _number(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def table(numbers: JsonObject) -> Table:
    """A row per loss."""
    result = Table(
        title="What each loss climbs: cosine with grad J, over all batches of two completions",
        caption="Bias: the largest |E[gradient] - grad J| / |grad J| of all policies. Older: completions of a policy "
        "halfway to the reference, the smallest cosine. Broken: the lines of the report that do not hold.",
    )
    columns = ("loss", *POLICIES, "bias", "noise", "zero at pi*", "older", "fixed point", "broken")
    for column in columns:
        result.add_column(column, justify="left" if column in ("loss", "broken", "zero at pi*") else "right")
    for name, row in numbers.items():
        known = [x for x in row["older"].values() if x is not None]
        result.add_row(
            name,
            *(_shown(row["cosine"][policy], "{:.3f}") for policy in POLICIES),
            "0" if row["unbiased"] else f"{row['bias']:.2g}",
            _shown(max((x for x in row["noise"].values() if x is not None), default=None), "{:.1f}"),
            row["zero at pi*"],
            _shown(min(known, default=None), "{:.2f}"),
            _shown(row["fixed point"], "{:.1%}"),
            ", ".join(row["broken"]),
        )
    return result


def _shown(x: float | None, form: str) -> str:
    return "-" if x is None else form.format(x)


def figure(numbers: JsonObject) -> Figure:
    """Cosine and noise of each loss, at one glance."""
    result = Figure(figsize=(11, 0.32 * len(numbers) + 1.4), layout="constrained")
    left, right = result.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    places = np.arange(len(numbers))[::-1]
    for policy, marker, colour in zip(POLICIES, "o^s", ("tab:green", "tab:orange", "tab:red"), strict=True):
        cosines, noises = (
            [np.nan if row[key][policy] is None else row[key][policy] for row in numbers.values()]
            for key in ("cosine", "noise")
        )
        left.plot(cosines, places, marker, color=colour, label=policy, alpha=0.8)
        right.plot(noises, places, marker, color=colour, alpha=0.8)
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set_yticks(places, list(numbers))
    left.set_xlabel("cosine of E[gradient] with grad J")
    result.legend(title="policy, by its distance from the reference", loc="outside lower center", ncols=3)
    right.set_xscale("log")
    right.set_xlabel("noise: standard deviation over |E[gradient]|")
    for axes in (left, right):
        axes.grid(axis="y", alpha=0.3)
    return result
