"""Signs of trouble in the metrics of the last updates, which the table of warnings names.

Metrics are those of the table in agents/README.md. A metric that is missing, because an agent does not have it, never
holds. Nor does a change whose standard error is missing: it is nan, and no comparison with nan holds. Limits are
therefore combined by `np.max`, which keeps a nan; Python's `max` may drop it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agents.training.reduction import Metrics

Rows = Sequence[Metrics]  # one an update
RISEN = 4.0  # standard errors from which J, or the KL, counts as higher than at the start


@dataclass
class Context:
    """What the conditions need besides the metrics of the last updates.

    Attributes:
        n_episodes, max_grad_norm: settings of the agent.
        regularized: whether the reward has a KL, so that the optimum is not deterministic.
        precision: the relative rounding error of the policy's arithmetic.
        start: the metrics of the first updates; none where J is not comparable over time (beta is adapted).
        expected_ends: the mean number of times that the reference would end a completion of a batch; None without a
            reference or an end token.
    """

    n_episodes: int = 64
    max_grad_norm: float = 1.0
    regularized: bool = True
    precision: float = 2.0**-23
    start: list[Metrics] = field(default_factory=list)
    expected_ends: Callable[[], float | None] = lambda: None


Test = Callable[[Rows, float, Context], bool]


def above(name: str) -> Test:
    """A metric is above the threshold in every row."""
    return lambda rows, limit, context: all(row.get(name, math.nan) > limit for row in rows)


def below(name: str) -> Test:
    """A metric is below the threshold in every row."""
    return lambda rows, limit, context: all(row.get(name, math.nan) < limit for row in rows)


def mean(rows: Rows, name: str) -> float:
    """The mean of a metric over the rows; nan where one does not have it, and without rows."""
    return float(np.mean([row.get(name, math.nan) for row in rows])) if rows else math.nan


def estimated_objective(rows: Rows) -> float:
    """An estimate of J: the mean return, or the mean score of an agent that has no mean return; nan without rows."""
    means = [row.get("objective/rlhf_reward", row.get("objective/scores", math.nan)) for row in rows]
    return float(np.mean(means)) if means else math.nan


def mean_error(rows: Rows, name: str) -> float:
    """The standard error of the mean over the rows, from the errors `name` of each row; nan where one is missing."""
    errors = [row.get(name, math.nan) for row in rows]
    return math.sqrt(float(np.mean(np.square(errors))) / len(rows)) if rows else math.nan


def in_errors(change: float, error: float) -> float:
    """A change as a number of standard errors; nan where the error is nan."""
    return float(change / np.max([1e-12, error]))


def change_of_objective(rows: Rows, context: Context) -> float:
    """How far J has come since the start of the run, in standard errors; nan where it is not measured."""
    change = estimated_objective(rows) - estimated_objective(context.start)
    return in_errors(
        change, math.hypot(*(mean_error(x, "objective/rlhf_reward_stderr") for x in (rows, context.start)))
    )


def halves(rows: Rows) -> tuple[Rows, Rows]:
    """The first half of the rows, the longer one where their number is odd, and the second."""
    middle = (len(rows) + 1) // 2
    return rows[:middle], rows[middle:]


def trend(rows: Rows, name: str) -> float:
    """The change of a metric from the first half of the rows to the second, in standard errors."""
    first, second = (np.array([row.get(name, math.nan) for row in half]) for half in halves(rows))
    error = math.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return in_errors(float(second.mean() - first.mean()), error)


def scores_equal(rows: Rows, limit: float, context: Context) -> bool:
    """Nearly all groups have equal scores, and not because J has risen until all completions are good."""
    return above("groups/equal_scores_ratio")(rows, limit, context) and not change_of_objective(rows, context) > RISEN


def entropy_gone(rows: Rows, limit: float, context: Context) -> bool:
    """The policy is deterministic. Without a KL in the reward it may be the best: then only if J has not risen."""
    return below("objective/entropy")(rows, limit, context) and (
        context.regularized or change_of_objective(rows, context) <= RISEN
    )


def ratio_off(rows: Rows, limit: float, context: Context) -> bool:
    """The mean of rho, which is 1 in expectation, is far from 1."""
    return all(abs(row.get("val/ratio", math.nan) - 1.0) > limit for row in rows)


def first_ratio_off(rows: Rows, limit: float, context: Context) -> bool:
    """rho is not 1 before the first step; rounding in low precision is allowed for."""
    return above("val/first_ratio_error_avg")(rows, max(limit, 20 * context.precision), context)


def kl_negative(rows: Rows, limit: float, context: Context) -> bool:
    """The mean of k1 is below 0 by more than chance: by its standard error, and by completions too rare to be seen."""
    chance = 4 * mean_error(rows, "objective/kl_stderr")
    return mean(rows, "objective/kl") < -float(np.max([limit, chance, 10 / (context.n_episodes * len(rows))]))


def never_ends(rows: Rows, limit: float, context: Context) -> bool:
    """No completion ends itself, J has not risen, and it is not by design.

    It is by design where the reference, a model of long texts, would hardly have ended any of these completions. Where
    it gives the end tokens next to no probability at all, they are probably not the model's: this is no design.
    """
    clipped = "completions/clipped_ratio"
    if not all(row.get(clipped, math.nan) >= limit for row in rows) or change_of_objective(rows, context) > RISEN:
        return False
    if any(row.get(clipped, limit) < limit for row in context.start):
        return True
    ends = context.expected_ends()
    return ends is not None and (ends * context.n_episodes * len(rows) > 5 or ends < 1e-6)


def objective_fell(rows: Rows, limit: float, context: Context) -> bool:
    """J is below its value at the start of the run, by several standard errors, also in the last row alone."""
    return change_of_objective(rows, context) < -limit and change_of_objective(rows[-1:], context) < 0


def kl_runs_away(rows: Rows, limit: float, context: Context) -> bool:
    """The KL has at least doubled, to more than the threshold and chance, and score and J have not risen.

    The mean of the last two rows is compared with that of the first two.
    """
    before, after = mean(rows[:2], "objective/kl"), mean(rows[-2:], "objective/kl")
    errors = [mean_error(some, "objective/kl_stderr") for some in (rows[:2], rows[-2:])]
    risen = after > limit and after > 2 * before and in_errors(after - before, math.hypot(*errors)) > RISEN
    return risen and trend(rows, "objective/scores") < 1 and not change_of_objective(rows, context) > RISEN


def gold_falls(rows: Rows, limit: float, context: Context) -> bool:
    """The score rises and the gold score falls."""
    return trend(rows, "objective/scores") > limit and trend(rows, "objective/gold_scores") < -limit


def gradient_large(rows: Rows, limit: float, context: Context) -> bool:
    """The gradient is so large that max_grad_norm leaves next to nothing of its smaller parts."""
    return above("grad_norm")(rows, limit * context.max_grad_norm, context)


def below_reference(rows: Rows, limit: float, context: Context) -> bool:
    """The measured J is below the reference's by a share of the way to the optimum, or by more than chance."""

    def margin(row: Metrics) -> float:
        error = math.sqrt(2) * row.get("eval/objective_stderr", 0.0)  # the reference's J has an error too
        return float(np.max([0.0, limit * (row.get("optimum", -math.inf) - row["reference"]), 3 * error]))

    return all(row["eval/objective"] < row["reference"] - margin(row) for row in rows)
