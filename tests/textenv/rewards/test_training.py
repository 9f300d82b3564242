"""`trainer_state`, `log_extra` and `log_metric`: who gets them, and what becomes of what is logged."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerState as TransformersState

from tests.helpers.completions import CompletionLists, score_lists
from textenv.rewards import RewardError, TrainerState, TrainingContext, WeightedReward

BATCH: Any = (["p", "p"], ["a", "b"], [[1], [2]], {})
ALL = {"trainer_state", "log_extra", "log_metric"}


def test_the_state_has_the_fields_of_transformers() -> None:
    """With their defaults: a function finds what it would find under TRL."""
    theirs = TransformersState()
    assert {f.name for f in dataclasses.fields(TrainerState)} == {f.name for f in dataclasses.fields(theirs)}
    assert dataclasses.asdict(TrainerState()) == dataclasses.asdict(theirs)


class Module(torch.nn.Module):
    """A reward written as a torch module, without further keywords."""

    def forward(self, prompts: Any, completions: Any, completion_ids: Any) -> Any:
        """Scores each completion 1."""
        return torch.ones(len(prompts))


def narrow(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
    """The arguments of every reward, and no others."""
    return [1.0] * len(prompts)


@functools.wraps(narrow)
def decorated(*arguments: Any, **keywords: Any) -> list[float]:
    """Passes on what it gets."""
    return narrow(*arguments, **keywords)


@pytest.mark.parametrize("function", [narrow, decorated, Module()])
def test_functions_that_do_not_take_them_work_as_before(function: Any) -> None:
    """They are handed over where the signature takes them."""
    assert score_lists(WeightedReward(function), *BATCH).tolist() == [1.0, 1.0]


def test_each_function_gets_those_that_it_takes() -> None:
    """By name, as a keyword without a default too, or all of them as further keywords."""
    seen: list[set[str]] = []

    def by_name(prompts: Any, completions: Any, completion_ids: Any, *, log_metric: Any) -> list[float]:
        seen.append({"log_metric"} if callable(log_metric) else set())
        return [1.0] * len(prompts)

    def all_of_them(prompts: Any, **further: Any) -> list[float]:
        seen.append(set(further) & ALL)
        return [1.0] * len(prompts)

    score_lists(WeightedReward([by_name, all_of_them, functools.partial(all_of_them)]), *BATCH)
    assert seen == [{"log_metric"}, ALL, ALL]


def test_the_context_is_handed_over() -> None:
    """A reward that depends on the progress of the training."""
    context = TrainingContext()
    reward = WeightedReward(lambda prompts, trainer_state, **_: [float(trainer_state.global_step)] * 2, context=context)
    assert score_lists(reward, *BATCH).tolist() == [0.0, 0.0]
    context.state = TrainerState(global_step=7)
    assert score_lists(reward, *BATCH).tolist() == [7.0, 7.0]


def test_metrics_are_summed_over_calls() -> None:
    """Of several functions, sync and async; numbers of any library."""
    context = TrainingContext()

    def first(prompts: Any, log_metric: Any, **_: Any) -> list[float]:
        log_metric("accuracy", 1)
        log_metric("accuracy", np.float32(0.5))
        return [0.0] * len(prompts)

    async def second(prompts: Any, log_metric: Any, **_: Any) -> list[float]:
        log_metric("accuracy", torch.tensor(0.0))
        log_metric("length", True)
        return [0.0] * len(prompts)

    reward = WeightedReward([first, second], context=context)
    score_lists(reward, *BATCH)
    score_lists(reward, *BATCH)
    assert context.take_metrics() == {"accuracy": (3.0, 6), "length": (2.0, 2)}
    assert context.take_metrics() == {}


def test_a_call_that_fails_logs_nothing() -> None:
    """Neither one that raises nor one that returns no scores; the next attempt counts once."""
    context, calls = TrainingContext(), []

    def flaky(prompts: Any, log_metric: Any, log_extra: Any, **_: Any) -> Any:
        calls.append(len(prompts))
        log_metric("calls", len(calls))
        log_extra("note", ["n"] * len(prompts))
        if len(calls) == 1:
            raise ValueError("once")
        return None if len(calls) == 2 else [0.0] * len(prompts)

    finished = CompletionLists(*BATCH)
    WeightedReward(flaky, context=context, on_error="retry", wait=0.0).score(finished)
    assert calls == [2, 2, 2] and context.take_metrics() == {"calls": (3.0, 1)}
    assert finished.extra == {"note": ["n", "n"]}


def test_columns_reach_the_completions_that_are_scored_alone() -> None:
    """Where a batch fails as a whole, each row keeps what was logged about it."""

    def picky(completions: Any, log_extra: Any, **_: Any) -> list[float]:
        if len(completions) > 1 or "b" in completions:
            raise ValueError("no")
        log_extra("text", completions)
        return [1.0] * len(completions)

    finished = CompletionLists(["p"] * 3, ["a", "b", "c"], [[1], [2], [3]], {})
    reward = WeightedReward(picky, on_error="skip", tries=1)
    with pytest.warns(UserWarning, match="1 of 3 completions are skipped"):
        scores = reward.score(finished, may_skip=True)
    assert np.isnan(scores).tolist() == [False, True, False]
    assert finished.extra == {"text": ["a", None, "c"]}


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda metric, extra: metric("m", "1.0"), "log_metric takes a name and a number, got 'm' and '1.0'"),
        (lambda metric, extra: metric("m", None), "log_metric takes a name and a number"),
        (lambda metric, extra: metric("m", [1.0]), "log_metric takes a name and a number"),
        (lambda metric, extra: metric(1, 1.0), "log_metric takes a name and a number, got 1 and 1.0"),
        (lambda metric, extra: metric("", 1.0), "log_metric takes a name and a number"),
        *(
            (
                lambda metric, extra, value=value: metric("m", value),
                "finite in float32, or nan, got .* for 'm'",
            )
            for value in (float("inf"), -float("inf"), 1e39, 10**400)
        ),
        (lambda metric, extra: extra("c", [1]), "one value per completion: 2, got 1 for 'c'.*2 completions"),
        (lambda metric, extra: extra("c", [1, 2, 3]), "one value per completion: 1, got 3 for 'c'"),
        (lambda metric, extra: extra("c", "ab"), "log_extra takes a name and a list of values"),
        (lambda metric, extra: extra(None, [1, 2]), "log_extra takes a name and a list of values"),
        *(
            (lambda metric, extra, name=name: extra(name, [1, 2]), f"log_extra takes names other than .*got '{name}'")
            for name in ("prompt", "completion", "score", "kl", "gold_score")
        ),
    ],
)
def test_what_cannot_be_logged_is_refused(call: Any, rule: str) -> None:
    """In a sentence, as an error of the function. (A batch that fails is scored alone, too, and may fail otherwise.)"""

    def logs(prompts: Any, log_metric: Any, log_extra: Any, **_: Any) -> list[float]:
        call(log_metric, log_extra)
        return [0.0] * len(prompts)

    with pytest.raises(RewardError, match=rule):
        score_lists(WeightedReward(logs), *BATCH)
