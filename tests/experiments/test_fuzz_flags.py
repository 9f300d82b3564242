"""Any values of any flags: a config of finite numbers that JSON can hold, or an error of ours that names a flag.

An input is a set of flags: of a config that is made in Python, of a command line, or of a task that is then made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from experiments.command_line import read_arguments
from experiments.env_flags import EnvFlags
from experiments.errors import FlagError
from experiments.run_folder import plain
from tests.helpers.flags import COMMANDS, FLAGS, REQUIRED, make
from tests.helpers.fuzz import SEED, fuzz_values
from tests.helpers.inputs import Inputs, check_inputs
from tests.helpers.refusals import ODD
from tests.helpers.storage import content

NUMBERS = st.integers(-3, 70) | st.integers() | st.floats() | st.sampled_from([0.1, 0.5, 1, 2, 4, 1e-9, 10**9])
TEXTS = st.text(max_size=6) | st.sampled_from(["textenv/Toy-v0", "ppo", "cpu", "x" * 300, "../a", "\x1b[2J", "a:b"])
VALUES = NUMBERS | TEXTS | st.sampled_from([*ODD, None, [1, 2], (0.5,), {"vocab_size": 3}, Path("a")])
WORDS = (
    TEXTS | NUMBERS.map(str) | st.sampled_from(["None", "True", "1e22", "-", "--", "0x10", "1,2", "seed 1", "\udcff"])
)
TOYS = ["textenv/Toy-v0", "textenv/TajMahal-v0", "textenv/RewardHacking-v0"]
ARGUMENTS = ["vocab_size", "max_new_tokens", "num_prompts", "task_seed", "kl_coef", "shaping", "reward", "policy", "x"]


def fields(name: str) -> list[str]:
    """The fields of a command, agents' settings as "ppo.gamma"."""
    return [flag.removeprefix("--").replace("-", "_") for command, flag, _, _ in FLAGS if command == name]


def check_config(config: Any) -> None:
    """Saved as JSON, which has no NaN, it is read as the same."""
    text = json.dumps(plain(config), allow_nan=False)
    assert json.loads(text) == plain(config)


def names_a_flag(error: FlagError) -> bool:
    """Whether an error is one line about a flag."""
    return re.search(r"--?[a-z]|[A-Z]\w+ must", str(error)) is not None and "\n" not in str(error)


def fuzz_config(name: str, inputs: Inputs, count: int, start: int = SEED) -> None:
    """Configs of a command that are made in Python."""

    def check(values: dict[str, Any]) -> None:
        try:
            config = make(name, values)
        except FlagError as error:
            assert names_a_flag(error), error
        else:
            check_config(config)

    some = st.dictionaries(st.sampled_from(fields(name)), VALUES, min_size=1, max_size=3)
    fuzz_values(inputs, f"config of {name}", some, check, count, start)


def fuzz_command_lines(inputs: Inputs, count: int) -> None:
    """Flags with any words behind them."""

    def check(drawn: tuple[str, list[tuple[str, list[str]]]]) -> None:
        name, some = drawn
        arguments = [*REQUIRED.get(name, []), *(word for flag, words in some for word in (flag, *words))]
        try:
            config = read_arguments([name, *arguments])
        except FlagError as error:
            assert names_a_flag(error), error
        except SystemExit as end:
            assert end.code == 2
        else:
            check_config(config)

    flags = {name: [flag for command, flag, _, _ in FLAGS if command == name] + ["--x", "x"] for name in COMMANDS}
    drawn = st.sampled_from(sorted(COMMANDS)).flatmap(
        lambda name: st.tuples(
            st.just(name),
            st.lists(st.tuples(st.sampled_from(flags[name]), st.lists(WORDS, max_size=2)), min_size=1, max_size=3),
        )
    )
    fuzz_values(inputs, "command line", drawn, check, count)


def fuzz_task(env: str, inputs: Inputs, count: int) -> None:
    """Arguments of a task, which is made and takes a step."""

    def check(drawn: tuple[dict[str, Any], dict[str, Any]]) -> None:
        arguments, flags = drawn
        try:
            made = EnvFlags(env=env, env_args=arguments, **flags).make_env()
        except FlagError as error:
            assert str(error).startswith((env, "--")) and "\n" not in str(error), error
            return
        observation, info = made.reset(seed=0)
        assert made.observation_space.contains(observation)
        made.step(info["action_mask"].argmax(axis=1))

    small = st.integers(-1, 5) | st.floats(-1, 2) | st.sampled_from(["a", "", 10**9, 2**63, 1e300, "None"])
    arguments = st.dictionaries(st.sampled_from(ARGUMENTS), small, max_size=3)
    flags = st.dictionaries(st.sampled_from(["max_new_tokens", "kl_coef", "missing_eos_penalty"]), NUMBERS, max_size=2)
    fuzz_values(inputs, f"arguments of {env}", st.tuples(arguments, flags), check, count)


def fuzz_flags(folder: Path, count: int) -> Inputs:
    """All kinds; nothing is written anywhere."""
    inputs = Inputs()
    for name in COMMANDS:
        fuzz_config(name, inputs, count)
    fuzz_command_lines(inputs, count)
    for env in TOYS:
        fuzz_task(env, inputs, count)
    assert content(folder) == {}
    return inputs


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Works in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_flags(tmp_path: Path) -> None:
    """A few of each kind."""
    fuzz_flags(tmp_path, 20)


def test_a_flag_that_is_not_checked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without the checks of ranges a nan is saved."""
    monkeypatch.setattr("experiments.saved_run.check_flags", lambda config: None)
    with pytest.raises(ValueError, match="JSON"):
        fuzz_config("evaluate", Inputs(), 500, start=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flags_for_longer(tmp_path: Path, record_property: Any) -> None:
    """Several hundred of each kind."""
    kinds = [*(f"config of {name}" for name in COMMANDS), "command line", *(f"arguments of {env}" for env in TOYS)]
    check_inputs("flags", fuzz_flags(tmp_path, 600), kinds, record_property)
