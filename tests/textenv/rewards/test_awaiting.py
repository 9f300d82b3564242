"""Async reward functions: awaited together, on one loop, with the errors of the others."""

from __future__ import annotations

import asyncio
import functools
import gc
import multiprocessing
import sys
import warnings
from typing import Any

import pytest

from tests.helpers.completions import score_lists
from textenv.rewards import RewardError, WeightedReward

BATCH: Any = (["p", "p"], ["a", "b"], [[1], [2]], {})


async def length(completions: Any, **_: Any) -> list[float]:
    """A score per completion, after a while."""
    await asyncio.sleep(0)
    return [float(ord(completion)) for completion in completions]


class Callable:
    """An object whose `__call__` is async."""

    async def __call__(self, completions: Any, **_: Any) -> list[float]:
        """As `length`."""
        return await length(completions)


class Bound:
    """An object with an async method."""

    async def method(self, completions: Any, **_: Any) -> list[float]:
        """As `length`."""
        return await length(completions)


def wrapped(*arguments: Any, **keywords: Any) -> Any:
    """A plain function that returns what an async one returns."""
    return length(*arguments, **keywords)


async def with_scale(completions: Any, scale: float, **_: Any) -> list[float]:
    """An async function with an argument of its own."""
    return [scale * score for score in await length(completions)]


KINDS = {
    "function": length,
    "callable": Callable(),
    "method": Bound().method,
    "lambda": lambda **columns: length(**columns),
    "wrapper": wrapped,
    "functools.wraps": functools.wraps(length)(wrapped),
    "partial": functools.partial(with_scale, scale=1.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_awaitable_is_awaited(kind: str) -> None:
    """However the function is written; also where a loop runs already, as in a notebook."""
    reward = WeightedReward([KINDS[kind], lambda prompts, **_: [None, 1.0]], [1.0, 10.0])
    assert score_lists(reward, *BATCH).tolist() == [97.0, 108.0]

    async def notebook() -> Any:
        return score_lists(reward, *BATCH).tolist()

    assert asyncio.run(notebook()) == [97.0, 108.0]


def meeting(count: int) -> list[Any]:
    """Async functions each of which ends only after all of them have begun."""
    begun: list[int] = []

    async def waits(prompts: Any, **_: Any) -> list[float]:
        begun.append(1)
        async with asyncio.timeout(20):
            while len(begun) < count:
                await asyncio.sleep(0.001)
        return [1.0] * len(prompts)

    return [waits] * count


def test_async_functions_run_at_the_same_time() -> None:
    """Each waits for the others to begin; a function that is not async has been called before."""
    assert score_lists(WeightedReward([*meeting(3), lambda prompts, **_: [1.0, 1.0]]), *BATCH).tolist() == [4.0, 4.0]


def test_one_loop_serves_all_calls() -> None:
    """What belongs to a loop, such as a session or a lock, can be kept from one call to the next."""
    loops = []

    async def remembers(prompts: Any, **_: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(prompts)

    for _ in range(3):
        score_lists(WeightedReward(remembers), *BATCH)
    assert len(loops) == 3 and loops[0] is loops[1] is loops[2] and loops[0].is_running()


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ValueError("no such judge"), "ValueError: no such judge"),
        (SystemExit(3), "SystemExit: 3"),
        (asyncio.CancelledError(), "CancelledError"),
        (TimeoutError("too slow"), "TimeoutError: too slow"),
    ],
)
def test_an_error_of_an_async_function_is_told_as_any_other(error: BaseException, shown: str) -> None:
    """With its line; the loop goes on, also after `sys.exit`."""

    async def judge(completions: Any, **_: Any) -> list[float]:
        await asyncio.sleep(0)
        if "b" in completions:
            raise error  # here
        return [1.0] * len(completions)

    line = judge.__code__.co_firstlineno + 3
    with pytest.raises(
        RewardError, match=f"'judge' failed at {__file__}:{line} with {shown}.*completion 'b'"
    ) as raised:
        score_lists(WeightedReward(judge), *BATCH)
    assert raised.value.__cause__ is error
    assert score_lists(WeightedReward(length), *BATCH).tolist() == [97.0, 98.0]


def test_what_an_async_function_returns_is_checked() -> None:
    """As that of any other."""

    async def forgets(**_: Any) -> None:
        return None

    with pytest.raises(RewardError, match="'forgets' must return one score per completion, got None"):
        score_lists(WeightedReward(forgets), *BATCH)

    async def streams(**_: Any) -> Any:
        yield 1.0

    with pytest.raises(RewardError, match="'streams' must return a list of numbers or None.*async_generator"):
        score_lists(WeightedReward(streams), *BATCH)


def test_a_retry_calls_the_one_that_failed() -> None:
    """An async function that has scored all completions is not called again; nor is one awaited in vain."""
    calls = {"flaky": 0, "steady": 0}

    async def steady(prompts: Any, **_: Any) -> list[float]:
        calls["steady"] += 1
        return [1.0] * len(prompts)

    async def flaky(prompts: Any, **_: Any) -> list[float]:
        calls["flaky"] += 1
        if calls["flaky"] == 1:
            raise ValueError("once")
        return [2.0] * len(prompts)

    assert score_lists(WeightedReward([flaky, steady], on_error="retry", wait=0.0), *BATCH).tolist() == [3.0, 3.0]
    assert calls == {"flaky": 2, "steady": 1}


def test_a_function_that_fails_first_leaves_no_warning() -> None:
    """What the async ones have returned by then is closed."""

    def fails(**_: Any) -> list[float]:
        raise ValueError("first")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RewardError, match="first"):
            score_lists(WeightedReward([length, fails]), *BATCH)
        gc.collect()


def test_an_async_function_that_would_wait_for_itself_is_refused() -> None:
    """It would block the loop for ever."""

    async def nested(**_: Any) -> Any:
        return score_lists(WeightedReward(length), *BATCH).tolist()

    with pytest.raises(RewardError, match="must not score completions by another async reward function"):
        score_lists(WeightedReward(nested), *BATCH)


def _score(queue: Any) -> None:
    queue.put(score_lists(WeightedReward(length), *BATCH).tolist())


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_process_has_a_loop_of_its_own() -> None:
    """The threads of its parent are not copied."""
    score_lists(WeightedReward(length), *BATCH)
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fork beside threads
        child = context.Process(target=_score, args=(queue,))
        child.start()
    assert queue.get(timeout=30) == [97.0, 98.0]
    child.join()
