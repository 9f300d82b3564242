"""`python -m experiments check-reward`: what it prints is what the report has, and its exit codes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from rich.console import Console

import textenv  # noqa: F401  registers the environments
from experiments.check_reward import CheckRewardConfig, check, print_report
from experiments.errors import NotShown
from tests.helpers.commands import call
from textenv.reward_check import RewardReport, check_reward

FAST = ("--num-completions", "16", "--no-other-process")


def flat(text: str) -> str:
    """Without the breaks of lines."""
    return " ".join(text.split())


def test_the_exit_code_is_1_where_something_is_broken() -> None:
    """RewardHacking-v0 is, TajMahal-v0 is not; the broken checks are named."""
    called = call("check-reward", "--env", "textenv/RewardHacking-v0", "--no-other-process")
    assert called.returncode == 1, called.stderr
    assert re.search(r"of \d+ checks of the reward are broken: .*edit: append four smileys", called.stderr)
    assert "broken" in called.stdout and "feature: emoticons" in called.stdout and "Traceback" not in called.stderr
    called = call("check-reward", "--env", "textenv/TajMahal-v0", *FAST)
    assert called.returncode == 0, called.stderr
    assert "returns" in called.stdout and not called.stderr


def test_what_is_printed_is_what_the_report_has() -> None:
    """Each finding with its example, and each cell of each table."""
    report = check_reward(gym.make("textenv/RewardHacking-v0"), num_completions=32, other_process=False)
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=400, force_terminal=False))
    text = flat(stream.getvalue())
    for finding in report.findings:
        assert flat(f"{finding.name}{f' [{finding.function}]' if finding.function else ''}: {finding.text}") in text
        assert flat(finding.example) in text
    for table in report.tables:
        assert not table.rows or table.title in text
        assert all(flat(cell) in text for row in table.texts() for cell in row)


def test_the_flags_reach_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions, prompts, process and seed."""
    seen: list[dict[str, Any]] = []

    def recorded(env: Any, **arguments: Any) -> RewardReport:
        seen.append(arguments)
        return RewardReport([])

    monkeypatch.setattr("experiments.check_reward.check_reward", recorded)
    check(CheckRewardConfig(env="textenv/Toy-v0", num_completions=9, max_prompts=3, other_process=False, seed=5))
    assert seen == [{"num_completions": 9, "max_prompts": 3, "other_process": False, "seed": 5}]


def test_a_reward_of_the_user_on_a_model(assets: Path, tmp_path: Path) -> None:
    """By name, with a gold reward; in another process, too."""
    (tmp_path / "prompts.txt").write_text("Once upon a time\nThe big dog\n")
    flags = ("--reward", "tests.helpers.tasks:count_words", "--gold-reward", "tests.helpers.tasks:zero")
    data = ("--model", str(assets / "stories260k"), "--prompts", str(tmp_path / "prompts.txt"))
    called = call("check-reward", *flags, *data, "--max-new-tokens", "12", "--num-completions", "16")
    assert called.returncode == 1, called.stderr  # one point a word
    assert "[count_words]" in called.stdout and "in another process" in flat(called.stdout)
    assert "pad with the last word" in flat(called.stdout) and "second reward" in flat(called.stdout)
    assert "Warning" not in called.stderr


def test_in_python_it_raises_what_the_command_prints() -> None:
    """`NotShown`, whose exit code is 1."""
    with pytest.raises(NotShown, match="edit: append four smileys"):
        check(CheckRewardConfig(env="textenv/RewardHacking-v0", other_process=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--env", "textenv/Toy-v0", "--num-completions", "7"), "--num-completions must be"),
        (("--env", "textenv/Toy-v0", "--max-prompts", "0"), "--max-prompts must be"),
        (("--env", "textenv/Foo-v0"), "Foo"),
        (("--env", "textenv/Text-v0"), "--model|--reward|--prompts"),
    ],
)
def test_bad_input_is_refused(arguments: tuple[str, ...], message: str) -> None:
    """With exit code 2."""
    called = call("check-reward", *arguments)
    assert called.returncode == 2
    assert re.search(message, called.stderr), called.stderr
