"""Reward functions that fail: the error, the calls that are tried again, and the completions that are skipped."""

from __future__ import annotations

import functools
import math
import pickle
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.completions import score_lists
from tests.helpers.tasks import count_words, golden, make, mdp, words
from textenv.rewards import FinishedCompletions, RewardError, WeightedReward, scores_or_nan
from textenv.rewards.errors import place_of, shorten

SCORES = {"a": 1.0, "b": 2.0, "a b": 3.0}


class Judge:
    """A reward with scripted failures, which records the completions of every call."""

    __name__ = "judge"

    def __init__(self, *outcomes: Any, bad: Any = (), fail: Any = None) -> None:
        self.outcomes, self.bad, self.fail = list(outcomes), bad, fail or ValueError("bad completion")
        self.calls: list[list[str]] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        """The next outcome, if any is left: None is a success; else it fails where it gets a `bad` completion."""
        self.calls.append(list(completions))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            return outcome
        if any(completion in self.bad for completion in completions):
            if isinstance(self.fail, BaseException):
                raise self.fail
            return [self.fail if completion in self.bad else SCORES[completion] for completion in completions]
        return [SCORES[completion] for completion in completions]


def batch() -> FinishedCompletions:
    """Three completions: "a" and "b" after the prompt "a", "a b" after "b a b"."""
    task = mdp()
    prompt = np.array([0, 0, 1])
    tokens = np.array([[1, 0, 0], [2, 0, 0], [1, 2, 0]])
    return task.finished(prompt, task.prompt_texts[prompt], tokens, np.array([2, 2, 3]))


def test_an_error_of_the_tokenizer_is_not_the_rewards() -> None:
    """Completions that cannot be decoded: the reward was not called, and is not called again."""
    judge, finished = Judge(), batch()
    finished.tokens[0, 0] = 99
    with pytest.raises(IndexError):
        weighted(judge, on_error="retry").score(finished)
    assert judge.calls == []


def test_what_cannot_be_skipped_says_so() -> None:
    """A step and the exact optimum need every score. Control: other errors have no such note."""
    for on_error in ("skip", "retry"):
        with pytest.raises(RewardError) as raised:
            weighted(Judge(bad=["b"]), on_error=on_error).score(batch())
        assert ("leaves completions out of rollouts alone" in str(getattr(raised.value, "__notes__", ""))) == (
            on_error == "skip"
        )


def weighted(*functions: Any, **arguments: Any) -> WeightedReward:
    """The sum of functions, without a wait between tries."""
    return WeightedReward(functions, **{"wait": 0.0} | arguments)


# -- the error ---------------------------------------------------------------------------------------------------------


def line_of(function: Any, text: str) -> int:
    """The line of this file that holds `text`, from the function's first line on."""
    start = function.__code__.co_firstlineno
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if number >= start and text in line)


def looks_up(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
    """Fails in a function that it calls, for "a b"."""
    return [look_up(completion) for completion in completions]


def look_up(completion: str) -> float:
    """A KeyError for "a b"."""
    return {"a": 1.0, "b": 2.0}[completion]


def test_the_error_names_function_line_prompt_and_completion() -> None:
    """The line is that in the reward where the error was raised; the error itself is the cause."""
    with pytest.raises(RewardError) as caught:
        weighted(looks_up).score(batch())
    place = f"{__file__}:{line_of(look_up, 'return {')}"
    assert str(caught.value) == (
        f"The reward function 'looks_up' failed at {place} with KeyError: 'a b', for the completion 'a b' after the "
        f"prompt 'b a b'; it is defined at {__file__}:{looks_up.__code__.co_firstlineno}."
    )
    assert isinstance(caught.value, ValueError) and type(caught.value.__cause__) is KeyError
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_line_is_that_of_the_reward_and_not_of_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library that the reward calls raises the error, the line of the reward that called it is named."""
    (tmp_path / "their_library.py").write_text("def ask(text):\n    raise TimeoutError('no answer')\n")
    (tmp_path / "their_reward.py").write_text(
        textwrap.dedent("""\
            import their_library


            def judge(prompts, completions, completion_ids, **columns):
                return [their_library.ask(text) for text in completions]
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    import their_reward  # type: ignore[import-not-found]

    with pytest.raises(
        RewardError, match=r"'judge' failed at .*their_reward.py:5 with TimeoutError: no answer, for .*'a'"
    ):
        weighted(their_reward.judge).score(batch())


def decorated(function: Any) -> Any:
    """A wrapper without an effect."""

    @functools.wraps(function)
    def wrapper(*args: Any, **arguments: Any) -> Any:
        return function(*args, **arguments)

    return wrapper


@decorated
def inner(prompts: Any, **_: Any) -> Any:
    """Fails."""
    raise RuntimeError("inner")


@pytest.mark.parametrize(
    ("function", "name", "inside", "text"),
    [
        (inner, "inner", inner.__wrapped__, "raise RuntimeError"),
        (functools.partial(looks_up, goal=1), "looks_up", look_up, "return {"),
        (Judge(bad=["a"]), "judge", Judge.__call__, "raise self.fail"),
        (Judge(bad=["a"]).__call__, "__call__", Judge.__call__, "raise self.fail"),
        (lambda prompts, **_: 1 / 0, "<lambda>", decorated, "lambda prompts, **_: 1 / 0"),
    ],
)
def test_every_kind_of_callable_has_a_name_and_a_line(function: Any, name: str, inside: Any, text: str) -> None:
    """Wrapped functions, partial ones, objects, methods and lambdas."""
    line = line_of(inside, text)
    with pytest.raises(RewardError, match=rf"function '{name}' failed at .*test_failures\.py:{line} with"):
        weighted(function).score(batch())


def test_a_call_that_does_not_fit_is_told_as_such() -> None:
    """A function without the arguments never ran: the error has its signature, and its place where it is Python."""

    def narrow(prompts: Any, completions: Any) -> Any:
        return [0.0] * len(prompts)

    async def misnamed(prompt: Any, completions: Any, **columns: Any) -> Any:
        return [0.0] * len(prompt)

    line = narrow.__code__.co_firstlineno
    text = (
        r"The reward function 'narrow' cannot be called with prompts, completions, completion_ids: got an "
        rf"unexpected keyword argument 'completion_ids'. It is narrow\(.*\).*, defined at .*test_failures.py:{line}. "
        r"Write it with TRL's signature, fn\(prompts, completions, completion_ids, \*\*columns\): .* the prompts\.$"
    )
    for function in (narrow, functools.partial(narrow)):
        with pytest.raises(RewardError, match=text):
            weighted(function).score(batch())
    with pytest.raises(RewardError, match=r"'misnamed' cannot be called with .*missing a required argument: 'prompt'"):
        weighted(misnamed).score(batch())
    with pytest.raises(RewardError, match=r"'max' failed with TypeError: .* after the prompt 'a'\.$"):
        weighted(max).score(batch())


def test_a_type_error_inside_of_a_function_is_no_wrong_signature() -> None:
    """Control of the above: the function was called."""

    def adds(prompts: Any, completions: Any, completion_ids: Any) -> Any:
        return [len(text) + "" for text in completions]  # type: ignore[operator]

    with pytest.raises(RewardError, match=r"'adds' failed at .* with TypeError: .*unsupported operand"):
        weighted(adds).score(batch())


@pytest.mark.parametrize("code", [None, 0, 3, "out of quota"])
def test_an_exit_is_a_failure(code: Any) -> None:
    """`sys.exit` in a reward does not end the process."""

    def quits(prompts: Any, **_: Any) -> Any:
        sys.exit(code)

    with pytest.raises(RewardError, match=f"'quits' failed at .* with SystemExit: {code if code is not None else ''}"):
        weighted(quits).score(batch())


def test_an_interrupt_is_no_failure() -> None:
    """Ctrl-C ends the call, and is not tried again."""
    judge = Judge(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        weighted(judge, on_error="skip").score(batch(), may_skip=True)
    assert len(judge.calls) == 1


def test_an_interrupt_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two tries."""

    def interrupted(seconds: float) -> None:
        assert seconds == 60.0
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    judge = Judge(ValueError())
    with pytest.raises(KeyboardInterrupt):
        weighted(judge, on_error="retry", wait=60.0).score(batch())
    assert len(judge.calls) == 1


def test_long_and_strange_texts_are_shortened_and_escaped() -> None:
    """Of the error, of the completion and of the value; an error whose text fails is told too."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    task = words(reward=Judge(Broken()), prompts=["a"])
    with pytest.raises(RewardError, match="failed at .* with Broken: <exception str.* failed>"):
        env = make(task)
        env.reset()
        env.step(0)
    with pytest.raises(RewardError) as caught:
        weighted(Judge(bad=["a"], fail=ValueError("\n".join(["<html>\x1b[2J"] * 10_000)))).score(batch())
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()
    with pytest.raises(RewardError) as caught:
        score_lists(WeightedReward(lambda **_: "\x1b[2J" * 10_000), ["\x1b]0;\x07"], ["\x1b[1m" * 10_000], [[0]], {})
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


def test_the_completion_that_fails_alone_is_found() -> None:
    """One by one, up to the first that fails; the others are not called."""
    judge = Judge(bad=["b"])
    with pytest.raises(RewardError, match="bad completion, for the completion 'b' after the prompt 'a'"):
        weighted(judge).score(batch())
    assert judge.calls == [["a", "b", "a b"], ["a"], ["b"]]


def test_a_batch_that_fails_as_a_whole_is_told_as_such() -> None:
    """Where each completion alone is scored, the error says that the batch failed."""
    judge = Judge(TimeoutError("slow"))
    with pytest.raises(
        RewardError, match="with TimeoutError: slow, for a batch of 3 completions.*None .* fails alone"
    ) as e:
        weighted(judge).score(batch())
    assert judge.calls[1:] == [["a"], ["b"], ["a b"]] and type(e.value.__cause__) is TimeoutError


def test_completions_that_no_function_scores_are_named() -> None:
    """None from all functions is a failure of the completion; None from some is not."""
    with pytest.raises(RewardError, match="Every reward function returned None for the completion 'b'.*'a'"):
        weighted(lambda **_: [1.0, None, None], lambda **_: [None, None, 1.0]).score(batch())
    assert weighted(lambda **_: [1.0, None, 1.0], lambda **_: [None, 2.0, 1.0]).score(batch()).tolist() == [1, 2, 2]


# -- tried again -------------------------------------------------------------------------------------------------------

BAD = [ValueError("down"), SystemExit(1), [1.0, math.nan, 1.0], [1.0], None, "111", [None] * 3, [1e39, 0.0, 0.0]]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_failing_call_is_tried_again(bad: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to `tries` calls in all, with the wait between them; then it is raised."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    broken = {} if bad is None else bad
    judge = Judge(broken, broken)
    assert weighted(judge, on_error="retry", wait=2.5).score(batch()).tolist() == [1.0, 2.0, 3.0]
    assert judge.calls == [["a", "b", "a b"]] * 3 and waits == [2.5, 2.5]
    judge = Judge(*[broken] * 99)
    with pytest.raises(RewardError):
        weighted(judge, on_error="retry", tries=4, wait=0.5).score(batch())
    assert judge.calls[:4] == [["a", "b", "a b"]] * 4 and all(len(call) == 1 for call in judge.calls[4:])
    assert waits == [2.5, 2.5, 0.5, 0.5, 0.5]
    judge = Judge(broken)
    with pytest.raises(RewardError):  # control: without a second try
        weighted(judge).score(batch())


def test_only_the_function_that_failed_is_called_again() -> None:
    """The scores of the others are kept."""
    good, flaky = Judge(), Judge(ValueError(), ValueError())
    assert weighted(good, flaky, on_error="retry").score(batch()).tolist() == [2.0, 4.0, 6.0]
    assert (len(good.calls), len(flaky.calls)) == (1, 3)


def test_the_functions_share_the_attempts() -> None:
    """One fails in the first attempt, and leaves two attempts for another that fails too."""
    for failures, calls in ((1, 2), (2, 2)):
        first, second = Judge(ValueError()), Judge(*[ValueError()] * failures)
        reward = weighted(first, second, on_error="retry", tries=3)
        if failures == 1:
            assert reward.score(batch()).tolist() == [2.0, 4.0, 6.0]
        else:
            with pytest.raises(RewardError, match="None of the completions fails alone"):
                reward.score(batch())
        assert [len(call) for call in first.calls] == [3, 3]
        assert sum(len(call) == 3 for call in second.calls) == calls


def test_the_gold_reward_is_tried_again() -> None:
    """By the same rule as the reward."""
    flaky = Judge(ValueError(), ValueError())
    task = mdp(reward=count_words, gold_reward=flaky, on_reward_error="retry", reward_wait=0.0)
    scores = task.gold_score(batch())
    assert scores is not None and scores.tolist() == [1.0, 2.0, 3.0] and len(flaky.calls) == 3


# -- skipped -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [ValueError("down"), SystemExit(0), math.nan, math.inf, None, "1.0", 1e39])
def test_completions_that_fail_are_skipped(fail: Any) -> None:
    """After the tries each completion without a score is called once alone; nan stands for those that fail again."""
    judge = Judge(bad=["b"], fail=fail)
    if fail is None:
        judge.fail = None

        def call(prompts: Any, completions: Any, **_: Any) -> Any:
            judge.calls.append(list(completions))
            return [None if completion == "b" else SCORES[completion] for completion in completions]
    else:
        call = judge
    reward = weighted(call, on_error="skip", tries=2)
    with pytest.warns(UserWarning, match=r"1 of 3 completions are skipped.*'b' after the prompt 'a'"):
        scores = reward.score(batch(), may_skip=True)
    assert str(scores.tolist()) == "[1.0, nan, 3.0]"
    assert judge.calls[:2] == [["a", "b", "a b"]] * 2 and ["b"] in judge.calls[2:]
    assert len(judge.calls) <= 5  # those alone are called once
    with warnings.catch_warnings(action="error"):  # one warning is enough
        assert math.isnan(reward.score(batch(), may_skip=True)[1])
    with pytest.raises(RewardError, match="completion 'b' after"):  # where nothing may be skipped
        reward.score(batch())


def test_a_completion_that_succeeds_alone_is_not_skipped() -> None:
    """A batch that fails as a whole loses nothing; nobody is warned."""
    judge = Judge(*[TimeoutError()] * 3)
    with warnings.catch_warnings(action="error"):
        assert weighted(judge, on_error="skip").score(batch(), may_skip=True).tolist() == [1.0, 2.0, 3.0]
    assert judge.calls[3:] == [["a"], ["b"], ["a b"]]


def test_one_that_fails_every_third_call_is_scored() -> None:
    """As in a run with a judge in a network: nothing is skipped with "retry" or "skip", and "raise" raises."""

    def flaky() -> Callable[..., Any]:
        calls = iter(range(10**6))

        def every_third(prompts: Any, completions: Any, **_: Any) -> Any:
            if next(calls) % 3 == 2:
                raise ConnectionError("reset by peer")
            return [SCORES[completion] for completion in completions]

        return every_third

    for on_error in ("retry", "skip"):
        reward = weighted(flaky(), on_error=on_error)
        for _ in range(10):
            assert reward.score(batch(), may_skip=True).tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(RewardError, match="every_third.*ConnectionError: reset by peer"):
        reward = weighted(flaky())
        for _ in range(10):
            reward.score(batch())


def test_a_skip_of_score_or_gold_score_skips_both() -> None:
    """Both are measured on the same completions."""
    task = mdp(
        reward=Judge(bad=["a"]), gold_reward=Judge(bad=["b"]), on_reward_error="skip", reward_tries=1, reward_wait=0.0
    )
    with pytest.warns(UserWarning, match="skipped"):
        scores, gold_scores = scores_or_nan(task.reward, task.gold_reward, batch())
    assert str(scores.tolist()) == str([math.nan, math.nan, 3.0]) and gold_scores is not None
    assert str(gold_scores.tolist()) == str([math.nan, math.nan, 3.0])
    assert "bad completion" in str(task.last_skip)
    control = mdp(gold_reward=golden)
    scores, gold_scores = scores_or_nan(control.reward, control.gold_reward, batch())
    assert not any(map(math.isnan, scores)) and gold_scores is not None and not any(map(math.isnan, gold_scores))


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_reward_error": "ignore"}, "on_reward_error must be 'raise', 'retry' or 'skip', got 'ignore'"),
        ({"on_reward_error": None}, "on_reward_error must be .* got None"),
        *[({"reward_tries": n}, "reward_tries must be a whole number, at ") for n in (0, -1, 2.5, True, "3", 10**6)],
        *[({"reward_tries": n}, "reward_tries must be") for n in (math.inf, math.nan, None)],
        *[({"reward_wait": n}, "reward_wait must be a number of seconds from 0") for n in (-1, 1e9, True, "1", None)],
        *[({"reward_wait": n}, "reward_wait must be") for n in (math.inf, math.nan, -math.inf)],
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    """When the task is made; the message has the range and the value."""
    with pytest.raises(ValueError, match=message):
        make(words(**arguments))


def test_control_characters_are_escapes() -> None:
    """Each is shown, none is left out."""
    assert shorten("a\x1b[31m b\u200b") == "a\\x1b[31m b\\u200b" and shorten("a\n\t b") == "a b"


def test_a_partial_function_has_the_place_of_its_function() -> None:
    """File and first line."""
    inner = functools.partial(functools.partial(count_words, 1), 2)
    code = count_words.__code__
    assert place_of(inner) == place_of(count_words) == f"{code.co_filename}:{code.co_firstlineno}"
