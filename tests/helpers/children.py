"""Functions in forked children: OS processes that can be killed without a start that takes seconds."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path


def fork(function: Callable[[], None], output: Path | None = None) -> int:
    """Starts a child that calls a function and ends with exit code 0, or with 1 after an error; returns its id.

    Args:
        function: what the child does.
        output: a file that gets the text of an error.
    """
    child = os.fork()
    if child:
        return child
    try:
        function()
        os._exit(0)
    except BaseException as error:
        if output is None:
            traceback.print_exc()
        else:
            output.write_text(str(error))
    finally:
        os._exit(1)


def wait(child: int) -> int:
    """Waits until a child has ended; returns its exit code, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_self() -> None:
    """Ends this process as if it were killed from outside."""
    os.kill(os.getpid(), signal.SIGKILL)
