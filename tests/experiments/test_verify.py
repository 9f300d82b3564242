"""`python -m experiments verify`: the table, the file, and the exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from agents import GRPO
from agents.verification import agent_loss
from tests.helpers.commands import call

TOY = ("--env-args", "max_new_tokens", "2", "num_prompts", "1")
SCALED = agent_loss(GRPO, scale_rewards=False)  # an agent with settings, by its name in this module
NAME = "tests.experiments.test_verify:SCALED"


def test_reports_are_printed_and_written(tmp_path: Path) -> None:
    """Of an agent by name, an agent with settings, and a function."""
    losses = ("reinforce", NAME, "tests.helpers.losses:reversed_ratio")
    called = call("verify", *losses, *TOY, "--out", str(tmp_path / "out"))
    output = called.stdout
    assert called.returncode == 0, called.stderr
    assert all(f"{name}: 28 batches" in output for name in losses)
    found: Any = json.loads((tmp_path / "out" / "verify.json").read_text())
    assert [each["unbiased"] for each in found.values()] == [True, False, False]
    assert found["reinforce"]["fixed_point"] == pytest.approx(1.0)
    assert found[NAME]["on_policy"]["by_policy"]["far"]["bias"] == pytest.approx(0.5)
    assert found["reinforce"]["off_policy"]["top-k"]["by_policy"]["near"]["cosine"] < 1
    assert not found["tests.helpers.losses:reversed_ratio"]["invariances"]["KL in the rewards"]["holds"]
    assert (tmp_path / "out" / "verify.txt").read_text().startswith("reinforce: 28 batches")


@pytest.mark.parametrize(
    ("loss", "expected", "code"),
    [
        ("reinforce", ["unbiased", "zero_at_optimum", "invariant"], 0),
        ("grpo", ["zero_at_optimum"], 0),
        ("grpo", ["unbiased"], 1),
        ("tests.helpers.losses:reversed_ratio", ["invariant"], 1),
    ],
)
def test_the_exit_code_is_1_where_an_expectation_fails(loss: str, expected: list[str], code: int) -> None:
    """And names it."""
    called = call("verify", loss, *TOY, "--expect", *expected)
    assert called.returncode == code
    assert (f"{loss} is not {expected[0]}" in called.stderr) == (code == 1)


def test_an_error_of_a_loss_loses_nothing_of_those_before_it(tmp_path: Path) -> None:
    """Their reports are in --out."""
    called = call("verify", "reinforce", "tests.helpers.losses:small", *TOY, "--out", str(tmp_path))
    assert called.returncode == 2
    assert list(json.loads((tmp_path / "verify.json").read_text())) == ["reinforce"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a loss, module:object, or an agent of reinforce,"),
        (["foo"], "a loss must be module:object, or an agent of reinforce, .*, got 'foo'"),
        (["sb3-ppo"], "an agent of reinforce, actor_critic, ppo, rloo, grpo, path_consistency, got"),
        (["tests.helpers.losses:missing"], "could not be imported"),
        (["tests.helpers.losses:TASK"], "could not be imported"),
        (["tests.helpers.losses:small"], r"A loss takes \(rollout, log_probs\)"),
        (["grpo", "--num-generations", "1"], r"num_generations must be in \[2"),
        (["ppo", "--num-generations", "9"], "There are 1,634,380 batches of 1 x 9 completions, the limit is 50,000"),
        (["ppo", "--sampled-batches", "0"], "--sampled-batches must be at least 2, got 0"),
        (["ppo", "--env-args", "vocab_size", "0"], "Toy-v0 needs vocab_size >= 3"),
        (["ppo", "--env", "foo"], "Environment `foo` doesn't exist"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str) -> None:
    """With exit code 2."""
    called = call("verify", *arguments)
    assert called.returncode == 2
    assert re.search(message, called.stderr), called.stderr
