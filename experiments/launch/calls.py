"""Function calls that run in other OS processes, and what comes back from them: progress, a result or a failure."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.errors import paragraph

Report = Callable[[object], None]
Call = Callable[[Report], object]  # picklable, e.g. `functools.partial`; it may report its progress


class Failure(NamedTuple):
    """Why a call has no result."""

    text: str
    """One paragraph."""
    traceback: str
    """Empty where the worker was killed."""


class Progress(NamedTuple):
    """What a call that is running has reported; `call` is its index."""

    call: int
    value: Any


class Ended(NamedTuple):
    """A call has ended; `call` is its index."""

    call: int
    result: Any = None
    failure: Failure | None = None


Event = Progress | Ended


def run_call(index: int, call: Call, report: Report) -> Ended:
    """Runs a call. Every error becomes a failure, SystemExit and KeyboardInterrupt too."""
    try:
        return Ended(index, call(report))
    except BaseException as error:
        return Ended(index, failure=Failure(paragraph(error), traceback.format_exc()))
