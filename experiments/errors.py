"""Errors of the command line, and how every expected error is shown: one paragraph, without a traceback."""

from __future__ import annotations

import signal

from agents import Diverged
from agents.files import DamagedFile, StorageError
from textenv.rewards import RewardError


class FlagError(ValueError):
    """Flags that are invalid or contradict each other. The command line prints it in one line, without a traceback."""


class Unfinished(RuntimeError):
    """Some of several trials, or claims, have failed. Those that are not named have finished, and are kept."""


class NotShown(RuntimeError):
    """What the user expects of a loss or a reward does not hold."""


class NotLearned(RuntimeError):
    """A reward model is no better than a guess, or its pairs allow none that is. Nothing was saved as a result."""


class Stopped(KeyboardInterrupt):
    """A signal stopped the command. (A SystemExit would be taken for a failure of the reward that it interrupts.)

    Args:
        number: the number of the signal.

    Attributes:
        number: as given.
        code: the exit code of the command, 128 plus the number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.code = number, 128 + number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}."


EXPECTED = (FlagError, DamagedFile, RewardError, Diverged, StorageError, Unfinished, NotShown, NotLearned)


def paragraph(error: BaseException) -> str:
    """The text of an error with its notes (how to resume), and with its type unless it is an expected one."""
    text = str(error) if isinstance(error, (*EXPECTED, Stopped)) else f"{type(error).__name__}: {error}"
    return " ".join([text, *getattr(error, "__notes__", ())])
