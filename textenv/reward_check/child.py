"""Scores completions in another process: `run_elsewhere`, and what that process runs.

Its hash seed is another one, so that a score which depends on `hash` or on the order of a set is found.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from textenv.reward_check.calls import WatchedFunction
from textenv.reward_check.literals import is_reward_model
from textenv.rewards import FinishedCompletions, RewardError, RewardFunction

TIMEOUT = 300  # seconds


class NotRun(Exception):
    """The other process could not be tried; the message says why."""


def run_elsewhere(
    function: RewardFunction, finished: FinishedCompletions, *, skips: bool = False
) -> NDArray[np.float64]:
    """Scores [K] of completions, from a new process; `skips` as in `Attempts`.

    Raises:
        NotRun: the function cannot be sent there, or that process ended without a result.
        RewardError: the function failed there.
    """
    if is_reward_model(function):
        raise NotRun("a copy of a reward model, with all its weights, would be loaded there")
    if getattr(function, "__module__", None) == "__main__":
        raise NotRun("it is defined in __main__, where another process does not find it; put it into a module")
    with tempfile.TemporaryDirectory() as folder:
        sent, received = Path(folder) / "sent", Path(folder) / "received"
        try:
            sent.write_bytes(pickle.dumps((function, finished, skips)))
        except Exception as error:  # whatever a user's object raises where it is pickled
            raise NotRun(f"it cannot be pickled: {error}") from error
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "4321"}
        # not `-m`: the package imports this module, which Python warns of
        command = [sys.executable, "-c", f"from {__name__} import main; main()", str(sent), str(received)]
        try:
            ended = subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise NotRun(f"it took longer than {TIMEOUT} s there") from error
        if not received.exists():
            lines = ended.stderr.decode(errors="replace").strip().splitlines()
            raise NotRun(f"it ended with exit code {ended.returncode}: {lines[-1] if lines else 'without a message'}")
        result = pickle.loads(received.read_bytes())
    if isinstance(result, str):
        raise RewardError(result)
    scores: NDArray[np.float64] = result
    return scores


def main() -> None:
    """Scores what was sent; writes the scores, or the message of the error."""
    sent, received = map(Path, sys.argv[1:])
    function, finished, skips = pickle.loads(sent.read_bytes())  # written by the process that started this one
    try:
        result: object = WatchedFunction(function, skips=skips).score_texts(finished)
    except RewardError as error:
        result = str(error)
    received.write_bytes(pickle.dumps(result))
