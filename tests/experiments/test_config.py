"""The command line that is made from the config dataclasses."""

from __future__ import annotations

from tests.helpers.commands import command


def test_help_lists_the_common_flags() -> None:
    """The command line is made from the dataclasses; their docstrings are the help."""
    text = command("compare", "--help").stdout
    for flag in (
        "--env",
        "--agents",
        "--seeds",
        "--total-timesteps",
        "--device",
        "--out",
        "--resume",
        "--ppo.clip-range",
    ):
        assert flag in text
    assert "None is importance weights without a clip" in text
    assert "--agent " in command("train", "--help").stdout
