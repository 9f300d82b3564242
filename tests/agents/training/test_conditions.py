"""The table of warnings on made-up metrics: each condition holds where it should, and nowhere else."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from agents.training.conditions import CONDITIONS, EVALUATION_CONDITIONS, Condition
from agents.training.health import precision
from agents.training.signs import Context, change_of_objective
from tests.helpers.paths import ROOT
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, words

ALL = {each.name: each for each in (*CONDITIONS, *EVALUATION_CONDITIONS)}
HEALTHY = {
    "num_skipped_steps": 0.0,
    "groups/equal_scores_ratio": 0.2,
    "objective/score_noise": 0.0,
    "objective/scores": 1.0,
    "objective/gold_scores": 0.8,
    "objective/rlhf_reward": 0.9,
    "objective/rlhf_reward_stderr": 0.05,
    "objective/entropy": 2.0,
    "objective/kl": 1.0,
    "objective/kl_stderr": 0.1,
    "completions/clipped_ratio": 0.3,
    "val/explained_variance": 0.4,
    "val/ess": 0.95,
    "val/ratio": 1.0,
    "val/first_ratio_error_avg": 1e-7,
    "policy/weight_change": 1e-2,
    "grad_norm": 2.0,
    "eval/objective": 0.9,
    "reference": 0.0,
    "optimum": 1.0,
}
START = [HEALTHY | {"objective/rlhf_reward": 0.9}] * 3
RISING, FALLING = np.linspace(0, 1, 20), np.linspace(1, 0, 20)
NOISE = 0.02 * np.random.default_rng(0).normal(size=(2, 20))


def rows(condition: Condition, **changes: Any) -> list[dict[str, float]]:
    """As many rows as the condition looks at, with some metrics changed; a list changes them row by row."""
    count = condition.patience
    columns = {
        name.replace("__", "/"): value if isinstance(value, list | np.ndarray) else [value] * count
        for name, value in changes.items()
    }
    return [HEALTHY | {name: float(values[-count:][i]) for name, values in columns.items()} for i in range(count)]


def holds(name: str, context: Context | None = None, **changes: Any) -> bool:
    """Whether the condition holds on these rows."""
    condition = ALL[name]
    return condition.found(
        rows(condition, **changes), condition.threshold, Context(start=START) if context is None else context
    )


NEVER = {"completions__clipped_ratio": 1.0}
STEEP = {"objective__scores": RISING + NOISE[0], "objective__gold_scores": FALLING + NOISE[1]}
HOLDS: list[tuple[str, dict[str, Any]]] = [
    ("skipped_steps", {"num_skipped_steps": 1}),
    ("equal_scores", {"groups__equal_scores_ratio": 1.0}),
    ("score_noise", {"objective__score_noise": 0.9}),
    ("no_completion_ends", NEVER),
    ("entropy_gone", {"objective__entropy": 0.01}),
    ("kl_runs_away", {"objective__kl": np.linspace(1, 12, 10)}),
    ("objective_fell", {"objective__rlhf_reward": 0.5}),
    ("explained_variance_negative", {"val__explained_variance": -7}),
    ("effective_sample_small", {"val__ess": 0.06}),
    ("ratio_off", {"val__ratio": 3.0}),
    ("ratio_off", {"val__ratio": 0.3}),
    ("first_ratio_off", {"val__first_ratio_error_avg": 2e-3}),
    ("kl_negative", {"objective__kl": -3.0, "objective__kl_stderr": 0.3}),
    ("gold_falls", STEEP),
    ("gradient_large", {"grad_norm": 1e6}),
    ("nothing_moves", {"policy__weight_change": 1e-8}),
    ("below_reference", {"eval__objective": -0.5}),
]
DOES_NOT: list[tuple[str, dict[str, Any]]] = [
    ("equal_scores", {"groups__equal_scores_ratio": [1.0, 1.0, 1.0, 1.0, 0.9]}),  # not in every update
    ("equal_scores", {"groups__equal_scores_ratio": 1.0, "objective__rlhf_reward": 2.0}),  # all are good now
    ("no_completion_ends", NEVER | {"objective__rlhf_reward": 2.0}),  # the longest completions are the best
    ("no_completion_ends", {"completions__clipped_ratio": [1.0, 1.0, 1.0, 1.0, 0.98]}),
    ("kl_runs_away", {"objective__kl": np.linspace(1, 12, 10), "objective__scores": RISING + NOISE[0]}),
    ("kl_runs_away", {"objective__kl": np.linspace(1, 12, 10), "objective__rlhf_reward": 2.0}),
    ("kl_runs_away", {"objective__kl": np.linspace(0, 0.5, 10)}),
    ("kl_runs_away", {"objective__kl": np.linspace(8, 10, 10)}),
    ("objective_fell", {"objective__rlhf_reward": 0.8}),  # within the standard error
    ("objective_fell", {"objective__rlhf_reward": [0.2, 0.2, 0.2, 0.3, 1.0]}),  # it has come back
    ("explained_variance_negative", {"val__explained_variance": [-3.0] * 9 + [0.1]}),
    ("kl_negative", {"objective__kl": -0.1, "objective__kl_stderr": 0.1}),  # chance
    ("kl_negative", {"objective__kl": -0.01, "objective__kl_stderr": 0.0}),  # rare completions were not sampled
    ("gold_falls", STEEP | {"objective__gold_scores": RISING + NOISE[1]}),
    ("gold_falls", STEEP | {"objective__scores": FALLING + NOISE[1]}),
    ("gold_falls", {"objective__scores": 1 + NOISE[0], "objective__gold_scores": 1 + NOISE[1]}),
    ("gradient_large", {"grad_norm": 50.0}),
    ("below_reference", {"eval__objective": -0.01}),  # 1% of the way to the optimum
    ("below_reference", {"eval__objective": -0.2, "eval__objective_stderr": 0.1}),
    ("below_reference", {"eval__objective": [-0.5, -0.5, 0.1]}),
]


@pytest.mark.parametrize(("name", "changes"), HOLDS, ids=[name for name, _ in HOLDS])
def test_a_condition_holds(name: str, changes: dict[str, Any]) -> None:
    """On as many updates as it needs; a single healthy update among them ends it, and so does a missing metric."""
    condition = ALL[name]
    assert holds(name, **changes)
    assert condition.describe(rows(condition, **changes), Context(start=START))
    missing = [{k: v for k, v in row.items() if k.replace("/", "__") not in changes} for row in rows(condition)]
    if name != "below_reference":  # an evaluation has all
        assert not condition.found(missing, condition.threshold, Context(start=START))


@pytest.mark.parametrize(("name", "changes"), DOES_NOT)
def test_a_condition_does_not_hold(name: str, changes: dict[str, Any]) -> None:
    """Where the sign is weak, short, or has another reason."""
    assert not holds(name, **changes)


@pytest.mark.parametrize("name", ALL)
def test_a_healthy_run_has_no_condition(name: str) -> None:
    """And every condition is provoked above."""
    assert not holds(name) and name in {provoked for provoked, _ in HOLDS}


def test_no_name_is_used_twice_and_every_message_has_a_cure() -> None:
    """Each says what to do."""
    assert len(ALL) == len(CONDITIONS) + len(EVALUATION_CONDITIONS)
    cure = re.compile("lower|raise|check|use prompts|make the reward|must be the same|are wrong", re.IGNORECASE)
    assert all(cure.search(each.message) and len(each.message) < 400 for each in ALL.values())


@pytest.mark.parametrize(
    ("ends", "expected"),
    [(None, False), (1e-9, True), (1e-3, False), (0.2, True)],
    ids=["no end token", "never", "rarely", "often"],
)
def test_completions_that_are_cut_by_design_are_no_reason_for_a_warning(ends: float | None, expected: bool) -> None:
    """From the first update on: where the reference would have ended some of them, or can hardly end any at all."""
    cut = [HEALTHY | {"completions/clipped_ratio": 1.0}] * 3
    assert holds("no_completion_ends", Context(start=cut, expected_ends=lambda: ends), **NEVER) is expected


@pytest.mark.parametrize(
    ("error", "in_float32", "in_bfloat16"), [(1e-6, False, False), (0.04, True, False), (0.3, True, True)]
)
def test_rounding_of_bfloat16_is_no_wrong_ratio(error: float, in_float32: bool, in_bfloat16: bool) -> None:
    """0.04 is what bfloat16 does; log-probabilities that are wrong by 0.3 are found in either."""
    for rounding, expected in ((2.0**-23, in_float32), (2.0**-7, in_bfloat16)):
        assert holds("first_ratio_off", Context(precision=rounding), val__first_ratio_error_avg=error) is expected


def test_a_deterministic_policy_may_be_the_best_without_a_kl() -> None:
    """Where the reward has no KL it is worth a warning only if J has not risen."""
    free = Context(start=START, regularized=False)
    gone = {"objective__entropy": 0.01}
    assert holds("entropy_gone", free, **gone)
    assert not holds("entropy_gone", free, **gone, objective__rlhf_reward=2.0)
    assert holds("entropy_gone", Context(start=START), **gone, objective__rlhf_reward=2.0)


@pytest.mark.parametrize("judged", ["objective/rlhf_reward", "objective/scores"], ids=["return", "score"])
def test_the_message_has_the_values_that_were_compared(judged: str) -> None:
    """The estimates of J at the start and now: mean returns; mean scores where an agent has nothing else."""
    names = ("objective/rlhf_reward", "objective/scores")
    values = {True: [0.6, 0.5, 0.4, 0.3, 0.2], False: [8.0] * 5}  # the score has risen, or there is no return

    def row(i: int | None) -> dict[str, float]:
        kept = names if judged == names[0] else names[1:]
        return {name: 0.9 if i is None else values[name == judged][i] for name in kept} | {
            "objective/rlhf_reward_stderr": 0.02
        }

    context, found = Context(start=[row(None)] * 3), [row(i) for i in range(5)]
    condition = ALL["objective_fell"]
    assert condition.found(found, condition.threshold, context)
    assert "has fallen from 0.9 at the start of the run to 0.4:" in condition.describe(found, context)


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("objective_fell", {"objective__rlhf_reward": 0.5}, "objective/rlhf_reward_stderr"),
        ("kl_negative", {"objective__kl": -3.0}, "objective/kl_stderr"),
    ],
)
def test_a_change_whose_error_is_not_measured_is_no_change(name: str, changes: dict[str, Any], error: str) -> None:
    """Not in these updates, not in one of them, and not at the start. Control: all of them are measured."""
    condition = ALL[name]
    found = rows(condition, **changes)
    assert condition.found(found, condition.threshold, Context(start=START))

    def unmeasured(some: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{key: value for key, value in row.items() if key != error} for row in some]

    for some in (unmeasured(found), [*found[:-1], *unmeasured(found[-1:])]):
        assert not condition.found(some, condition.threshold, Context(start=START, n_episodes=1))
    assert condition.found(found, condition.threshold, Context(start=unmeasured(START))) is (name == "kl_negative")


@pytest.mark.parametrize("name", ["equal_scores", "no_completion_ends"])
def test_a_rise_of_j_that_is_not_measured_silences_nothing(name: str) -> None:
    """A higher mean return without a standard error. Control: with it, the completions may be good."""
    sign = {"groups__equal_scores_ratio": 1.0, "completions__clipped_ratio": 1.0, "objective__rlhf_reward": 2.0}
    assert not holds(name, **sign)
    assert holds(name, **sign, objective__rlhf_reward_stderr=math.nan)
    assert math.isnan(
        change_of_objective(rows(ALL[name], objective__rlhf_reward_stderr=math.nan), Context(start=START))
    )


def test_a_limit_that_is_not_known_is_not_passed() -> None:
    """The KL at the start, and the error of an evaluation, are nan. Control: they are known."""
    rising = np.linspace(1, 12, 10)
    assert holds("kl_runs_away", objective__kl=rising)
    assert not holds("kl_runs_away", objective__kl=np.concatenate([[math.nan], rising[1:]]))
    assert holds("below_reference", eval__objective=-0.5, eval__objective_stderr=0.01)
    assert not holds("below_reference", eval__objective=-0.5, eval__objective_stderr=math.nan)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("kl_runs_away", {"objective__kl": [0.1] * 8 + [5.0, 0.05]}, "from 0.1 to 2.52 nats"),
        ("kl_negative", {"objective__kl": [-3.0] * 4 + [0.2]}, "log pi_ref is -2.36,"),
        (
            "gold_falls",
            {"objective__scores": [0.0, 0.1] * 5 + [1.0, 0.05] * 5, "objective__gold_scores": [1, 1.1] * 5 + [0] * 10},
            "from 0.05 to 0.525) while the gold score falls (from 1.05 to 0)",
        ),
    ],
)
def test_a_message_does_not_contradict_its_condition(name: str, changes: dict[str, Any], expected: str) -> None:
    """It has the means that were compared; the last row alone would deny what is said."""
    condition = replace(ALL[name], threshold=min(ALL[name].threshold, 1.0))
    found = rows(condition, **changes)
    assert condition.found(found, condition.threshold, Context(start=START))
    assert expected in condition.describe(found, Context(start=START))


def test_noise_of_the_kl_does_not_run_away() -> None:
    """The same means, with a standard error in which they could be equal, or that is not measured."""
    for error, expected in ((0.1, True), (3.0, False), (math.nan, False)):
        changes = {"objective__kl": np.linspace(1, 12, 10), "objective__kl_stderr": error}
        assert holds("kl_runs_away", **changes) is expected


def test_j_is_not_compared_where_beta_is_adapted() -> None:
    """`Context.start` is empty then: no condition on J holds."""
    context = replace(Context(), start=[])
    assert not holds("objective_fell", context, objective__rlhf_reward=-9.0)
    assert not holds("equal_scores", context) and holds("equal_scores", context, groups__equal_scores_ratio=1.0)


def test_the_false_alarms_of_noise_are_rare() -> None:
    """Metrics without a trend, 2,000 windows: trends and changes of J are found in less than 1% of them."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(2000):
        noise = rng.normal(size=(3, 20))
        start = [HEALTHY | {"objective/rlhf_reward": 0.9 + 0.05 * float(rng.normal())} for _ in range(3)]
        changes = {"objective__scores": noise[0], "objective__gold_scores": noise[1]}
        found += holds("gold_falls", **changes) + holds(
            "objective_fell", Context(start=start), objective__rlhf_reward=0.9 + 0.05 * noise[2]
        )
    assert found < 20


def test_the_readme_has_every_warning() -> None:
    """Its table has the names of the conditions, and no other."""
    section = (ROOT / "agents" / "README.md").read_text(encoding="utf-8").split("## When training goes wrong")[1]
    table = re.search(r"\n\| warning .*?\n\n", section, flags=re.DOTALL)
    assert table is not None
    first_column = re.findall(r"^\| (`.*?) \|", table[0], flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(first_column))) == sorted(ALL)
    single = re.search(r"One update is enough for ([^;.]*)", section)
    assert single is not None
    assert sorted(re.findall(r"`(\w+)`", single[1])) == sorted(name for name, each in ALL.items() if each.patience == 1)


def test_a_large_gradient_is_measured_by_its_clip() -> None:
    """A thousand times `max_grad_norm`, whatever that is."""
    for clip in (0.01, 1.0, 100.0):
        assert holds("gradient_large", Context(max_grad_norm=clip), grad_norm=1100.0 * clip)
        assert not holds("gradient_large", Context(max_grad_norm=clip), grad_norm=900.0 * clip)


def test_the_precision_of_the_policy() -> None:
    """That of its dtype; in float32 that of the matrix products."""
    policy = random_policy(make(words()))
    assert precision(policy) == torch.finfo(policy.model.dtype).eps
    policy.float()
    assert precision(policy) == torch.finfo(torch.float32).eps
    torch.set_float32_matmul_precision("medium")
    assert precision(policy) == torch.finfo(torch.bfloat16).eps
    policy.bfloat16()
    assert precision(policy) == torch.finfo(torch.bfloat16).eps
