"""Calls of reward functions: from their arguments to their checked scores, or a RewardError."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from functools import partial, wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.rewards.awaiting import await_all, discard
from textenv.rewards.errors import RewardError, reward_error, what_failed, wrong_signature
from textenv.rewards.finished import FinishedCompletions
from textenv.rewards.scores import NotScores, Scores, is_finite, not_finite, read_scores
from textenv.rewards.training import CallLog, TrainingContext, trainer_arguments


def call_rewards(
    functions: Mapping[int, tuple[Any, tuple[str, ...]]],
    finished: FinishedCompletions,
    context: TrainingContext,
    role: str = "reward",
) -> tuple[dict[int, Scores], RewardError | None]:
    """Calls functions in order, up to the first that fails; then awaits the async ones, all together.

    Args:
        functions: reward functions by index, each with the `trainer_arguments` that it takes.
        finished: the completions; gets the columns that the functions log.
        context: gives the functions `trainer_state`, and gets the metrics that they log.
        role: "reward" or "gold_reward".

    Returns:
        The scores of the functions that did not fail, by index, and the error of the first that did, or None. A
        function fails if it raises an error, calls `sys.exit`, or returns no list of numbers or None.
    """
    scores: dict[int, Scores] = {}
    waiting: dict[int, tuple[Any, CallLog]] = {}  # what async functions returned
    errors: dict[int, RewardError] = {}

    def finish(k: int, returned: object, log: CallLog) -> None:
        read = read_scores(returned, len(finished))
        log.finish()
        scores[k] = read
        context.add_metrics(log.metrics)
        finished.extra |= log.columns

    def failed(k: int, error: BaseException, names: Collection[str] = ()) -> None:
        problem = str(error) if isinstance(error, NotScores) else what_failed(functions[k][0], error)
        not_taken = wrong_signature(functions[k][0], names, role) if isinstance(error, TypeError) and names else None
        errors[k] = not_taken or reward_error(functions[k][0], problem, finished, role=role)
        errors[k].__cause__ = None if isinstance(error, NotScores) else error

    for k, (function, takes) in functions.items():
        log = CallLog(len(finished), context.check_name)
        call = _bind(function, takes, finished, context, log)
        try:
            returned = call()
            if inspect.isawaitable(returned):
                waiting[k] = returned, log
            else:
                finish(k, returned, log)
        except (Exception, SystemExit, GeneratorExit) as error:  # KeyboardInterrupt passes
            failed(k, error, call.keywords)  # `score_tokens` has none
            discard([returned for returned, _ in waiting.values()])
            return scores, errors[k]
    outcomes = await_all([returned for returned, _ in waiting.values()]) if waiting else []
    for (k, (_, log)), outcome in zip(waiting.items(), outcomes, strict=True):
        try:
            if outcome.error is not None:
                raise outcome.error
            finish(k, outcome.value, log)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an awaitable that was cancelled, too
            failed(k, error)
    return scores, errors[min(errors)] if errors else None


def call_reward(function: Any, finished: FinishedCompletions) -> NDArray[np.float64]:
    """The scores of one function outside a training, [K]; nan where it returned None.

    Raises:
        RewardError: it failed, or a score is not finite.
    """
    scores, error = call_rewards({0: (function, trainer_arguments(function))}, finished, TrainingContext())
    if error is not None:
        raise error
    values, none = scores[0]
    if not (finite := is_finite(values)).all():
        bad = int(np.argmin(finite))
        raise reward_error(function, not_finite(values[bad]), finished, bad)
    return values if none is None else np.where(none, np.nan, values)


def score_tokens_of(function: object) -> Any:
    """Returns `function.score_tokens` or None; ignores a copy by functools.wraps: the wrapper may score differently."""
    return None if hasattr(function, "__wrapped__") else getattr(function, "score_tokens", None)


def without_score_tokens(function: Any) -> Any:
    """A function that is called by the signature with texts: a copy by functools.wraps, see `score_tokens_of`."""
    if score_tokens_of(function) is None:
        return function

    @wraps(function)
    def with_texts(**arguments: object) -> object:
        return function(**arguments)

    return with_texts


def _bind(
    function: Any, takes: tuple[str, ...], finished: FinishedCompletions, context: TrainingContext, log: CallLog
) -> partial[Any]:
    """The call with its arguments: an error while these are made is not one of the function."""
    score_tokens = score_tokens_of(function)
    if score_tokens is not None and finished.prompt.min() >= 0:
        return partial(score_tokens, finished.prompt, finished.tokens, finished.length)
    given = {"trainer_state": context.state, "log_extra": log.log_extra, "log_metric": log.log_metric}
    return partial(function, **finished.arguments(), **{name: given[name] for name in takes})
