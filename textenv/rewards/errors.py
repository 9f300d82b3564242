"""RewardError, and the sentences that say which reward function failed, where, and for which completion."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType
from typing import Any

from textenv.arguments import shown
from textenv.rewards.finished import FinishedCompletions

CALLERS = {
    str(Path(__file__).with_name(name)) for name in ("awaiting.py", "calls.py", "scores.py")
}  # whose frames are not shown


class RewardError(ValueError):
    """A reward function raised an error, or did not return one finite number or None for each completion.

    The message names the function with its file and line, the prompt and the completion. `__cause__` is the error that
    the function raised, if it raised one.

    Attributes:
        whole_batch: whether the error is about a call with several completions, and not about one of them.
    """

    whole_batch = False


class WrongSignature(RewardError):
    """A reward function does not take the arguments that it is called with, whatever the completions are."""


def wrong_signature(function: Callable[..., object], names: Iterable[str], role: str = "reward") -> RewardError | None:
    """The error of a function that cannot be called with arguments of these names; None if it can."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature
        return None
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        defined = f", defined at {place}" if (place := place_of(function)) else ""
        name = name_of(function)
        return WrongSignature(
            f"The {role.replace('_', ' ')} function {name!r} cannot be called with {', '.join(names)}: {error}. It is "
            f"{name}{signature}{defined}. Write it with TRL's signature, fn(prompts, completions, completion_ids, "
            "**columns): arguments are passed by name, and columns are the further fields of the prompts."
        )
    return None


def reward_error(
    function: Callable[..., object],
    problem: str,
    finished: FinishedCompletions,
    row: int | None = None,
    role: str = "reward",
) -> RewardError:
    """The error of a function that `problem` describes.

    Args:
        function: the reward function.
        problem: what went wrong: "must return ..., got ...".
        finished: the completions of the call.
        row: the completion that the problem is about; None where it may be any of them.
        role: "reward" or "gold_reward".
    """
    row = 0 if len(finished) == 1 else row
    subject = f"a batch of {len(finished)} completions" if row is None else describe(finished, row)
    defined = f"; it is defined at {place}" if (place := place_of(function)) else ""
    kind = role.replace("_", " ")
    error = RewardError(f"The {kind} function {name_of(function)!r} {problem}, for {subject}{defined}.")
    error.whole_batch = row is None
    return error


def describe(finished: FinishedCompletions, row: int) -> str:
    """One completion and its prompt, as a message shows them."""
    return f"the completion {shown(finished.completions[row])} after the prompt {shown(finished.prompts[row])}"


def what_failed(function: Callable[..., object], error: BaseException) -> str:
    """Where in the function an error was raised, its type and its text."""
    summary = traceback.TracebackException.from_exception(error)
    files = {code.co_filename for code in codes(function)}
    below = [frame for frame in summary.stack if frame.filename not in CALLERS]  # none if it does not take the call
    frames = [frame for frame in below if frame.filename in files] or below
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"failed{place} with {type(error).__name__}: {shorten(str(summary))}"


def shorten(text: str, limit: int = 500) -> str:
    """A text on one line, its control characters as escapes and its end left out where it is long."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return text if len(text) <= limit else f"{text[:limit]} ..."


def name_of(function: Callable[..., object]) -> str:
    """The function's name, or that of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def place_of(function: Callable[..., object]) -> str:
    """File and first line of the function, of its `__call__` or of what it wraps; empty where it is not Python."""
    found = codes(function)
    return f"{found[-1].co_filename}:{found[-1].co_firstlineno}" if found else ""


def codes(function: Any) -> list[CodeType]:
    """The code of a function, and of the one that it wraps or calls."""
    while isinstance(function, functools.partial):
        function = function.func
    parts = [function, inspect.unwrap(function)]
    if not any(hasattr(part, "__code__") for part in parts):
        parts = [getattr(type(function), name, None) for name in ("score_tokens", "__call__")]
    return [code for part in parts if isinstance(code := getattr(part, "__code__", None), CodeType)]
