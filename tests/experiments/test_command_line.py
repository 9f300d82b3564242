"""Exit codes of the command line, and errors that are one paragraph without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents import Diverged
from agents.files import DamagedFile, StorageError
from experiments import command_line
from experiments.errors import FlagError, Stopped, Unfinished, paragraph
from tests.helpers.faults import run
from tests.helpers.paths import ROOT
from textenv.rewards import RewardError

COST = ["cost", "--devices", "1"]


def replace_cost(action: Callable[[], Any]) -> Callable[[], None]:
    """Makes the command `cost` perform an action."""

    def before() -> None:
        command_line.cost = lambda config: action()  # type: ignore[assignment]

    return before


def raises(error: BaseException) -> Callable[[], Any]:
    """An action that raises an error."""

    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FlagError("no such flag"), 2),
        (RewardError("the reward failed"), 1),
        (Diverged("not finite"), 1),
        (StorageError("the disk is full"), 1),
        (DamagedFile("cut off"), 1),
        (Unfinished("1 of 2 trials failed."), 1),
    ],
)
def test_expected_errors_are_a_paragraph(error: Exception, code: int, tmp_path: Path) -> None:
    """With the note how to resume, brackets as they are, control characters shown as text."""
    error.add_note("To resume: [this] \x1b[31m again")
    done = run(COST, tmp_path, before=replace_cost(raises(error)))
    assert done.code == code and "Traceback" not in done.output
    assert f"error: {error} To resume: [this] \\x1b[31m again" in " ".join(done.output.split())


def test_an_error_of_the_program_has_a_traceback(tmp_path: Path) -> None:
    """A fault of ours is not told as one of the user's: a ValueError that is not one of the expected ones."""
    done = run(COST, tmp_path, before=replace_cost(raises(ValueError("a bug"))))
    assert done.code == 1 and "Traceback" in done.output and "error: a bug" not in done.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_any_command(number: int, code: int, tmp_path: Path) -> None:
    """Without a traceback."""
    done = run(COST, tmp_path, before=replace_cost(lambda: os.kill(os.getpid(), number)))
    assert done.code == code and "Traceback" not in done.output
    assert f"stopped: by {signal.Signals(number).name}." in done.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_packages_are_imported(number: int, code: int) -> None:
    """Exits at once, without a traceback."""
    process = subprocess.Popen(
        [sys.executable, "-v", "-m", "experiments", "evaluate", "--run", "nowhere"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    for line in process.stderr:  # -v prints each import
        if line.startswith("import 'torch"):
            break
    process.send_signal(number)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == code and "Traceback" not in printed


def test_the_paragraph_of_an_error() -> None:
    """Its notes; its type too where it is not an expected one; and of a stop its signal."""
    error = ZeroDivisionError("by zero")
    error.add_note("To resume: x")
    assert paragraph(error) == "ZeroDivisionError: by zero To resume: x"
    assert paragraph(FlagError("x")) == "x" and paragraph(SystemExit(0)) == "SystemExit: 0"
    assert paragraph(Stopped(signal.SIGTERM)) == "stopped by SIGTERM."


KEY = """
def words(prompts, completions, completion_ids, **columns):
    raise KeyError("prompt")


def values(prompts, completions, completion_ids, **columns):
    raise ValueError("no key 'prompt'")
"""


@pytest.mark.parametrize("name", ["words", "values"])
def test_an_error_inside_a_reward_is_not_told_as_one_of_the_flags(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is a ValueError: exit code 1, with the function, its file and its line."""
    (tmp_path / "key_reward.py").write_text(KEY + REGISTERED.replace("NAME", name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "key_reward", raising=False)
    flags = ["--env", "key_reward:Key-v0", "--total-timesteps", "100", "--out", str(tmp_path / "run")]
    done = run(["train", *flags], tmp_path / "here")
    text = " ".join(done.output.split())
    assert done.code == 1 and "Traceback" not in text, done.output
    assert f"The reward function '{name}' failed at" in text and "key_reward.py:" in text
    assert not (tmp_path / "run").exists()  # nothing was trained


REGISTERED = """
import gymnasium as gym
from tests.helpers.tasks import mdp

gym.register("Key-v0", "textenv.env:make", vector_entry_point="textenv.vector:make_vec",
             kwargs={"task": "key_reward:task"}, disable_env_checker=True)

def task(**arguments):
    return mdp(reward=NAME, **arguments)
"""
