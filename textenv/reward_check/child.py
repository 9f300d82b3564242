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

from textenv.reward_check.calls import Function
from textenv.rewards import FinishedCompletions, RewardFunction

TIMEOUT = 300  # seconds


class NotRun(Exception):
    """The other process could not be tried; the message says why."""


def run_elsewhere(function: RewardFunction, finished: FinishedCompletions) -> NDArray[np.float64]:
    """Scores [K] of completions, from a new process.

    Raises:
        NotRun: the function cannot be sent there, or failed there.
    """
    if getattr(function, "__module__", None) == "__main__":
        raise NotRun("it is defined in __main__, where another process does not find it; put it into a module")
    with tempfile.TemporaryDirectory() as folder:
        sent, received = Path(folder) / "sent", Path(folder) / "received"
        try:
            sent.write_bytes(pickle.dumps((function, finished)))
        except Exception as error:  # whatever a user's object raises where it is pickled
            raise NotRun(f"it cannot be pickled: {error}") from error
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": "4321"}
        command = [sys.executable, "-m", "textenv.reward_check.child", str(sent), str(received)]
        try:
            ended = subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise NotRun(f"it took longer than {TIMEOUT} s there") from error
        if ended.returncode != 0:
            lines = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
            raise NotRun(f"it failed there: {lines[-1]}")
        scores: NDArray[np.float64] = np.load(received.with_suffix(".npy"))
        return scores


def main(sent: str, received: str) -> None:
    """Scores what was sent, and saves the scores."""
    function, finished = pickle.loads(Path(sent).read_bytes())  # written by the process that started this one
    np.save(received, Function(function).score(finished))


if __name__ == "__main__":
    main(*sys.argv[1:])
