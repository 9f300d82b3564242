"""Absurd values of every flag of every command: refused in a sentence that names the flag, before anything is done."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import command_line
from experiments.errors import FlagError
from experiments.ranges import flag_range, name_flags
from tests.helpers.commands import call, tiny
from tests.helpers.flags import COMMANDS, FLAGS, REQUIRED, Flag, make
from tests.helpers.refusals import ODD


def scalars(annotation: Any) -> set[Any]:
    """The types of the values that a flag takes: members of its lists, unions and dicts."""
    members = get_args(annotation)
    if get_origin(annotation) is Literal or not members:
        return {Literal} if members else {annotation}
    return set().union(*(scalars(member) for member in members if member is not ... and member is not type(None)))


NUMBERS = [flag for flag in FLAGS if scalars(flag[3]) & {int, float} and flag[2] != "env_args"]
NAMES = [flag for flag in FLAGS if scalars(flag[3]) & {str, Path} and flag[2] not in ("env_args", "prompt")]
CHOICES = [flag for flag in FLAGS if Literal in scalars(flag[3])]


def make_one(flag: Flag, value: Any) -> Any:
    """The config of a command in which one flag has this value; in a list where it takes one."""
    name, flag_name, _, annotation = flag
    if get_origin(annotation) in (list, tuple) or list in map(get_origin, get_args(annotation)):
        value = [value]
    return make(name, {flag_name.removeprefix("--").replace("-", "_"): value})


def check_refused(flag: Flag, value: Any) -> None:
    """Asserts that a value of a flag is refused in a sentence that begins with the flag and has the value."""
    with pytest.raises(FlagError) as caught:
        make_one(flag, value)
    assert str(caught.value).startswith(f"{flag[1]} must ") and "got " in str(caught.value), caught.value


def test_every_command_has_flags() -> None:
    """Control of the lists above."""
    assert len(NUMBERS) > 150 and len(NAMES) > 30 and len(CHOICES) > 20
    assert {flag[0] for flag in NUMBERS} == set(COMMANDS)


@pytest.mark.parametrize(
    "value", [float("inf"), -float("inf"), float("nan"), 1e308, -1e308, 10**400, 2**400, 1j, "1", []]
)
def test_numbers_that_no_run_makes_sense_of(value: Any) -> None:
    """Of every number flag, but for the gradient's largest norm, which may be inf."""
    for flag in NUMBERS:
        if flag[2] == "max_grad_norm" and value == float("inf"):
            continue
        check_refused(flag, value)


@pytest.mark.parametrize("value", [-(10**30), -1e22, -2, -1, -1e-9, 0, 0.5, 2**31, 2**64, 10**12, 10**22, 1e22, True])
def test_numbers_are_accepted_in_their_range_alone(value: Any) -> None:
    """An integer too where a flag takes other numbers; True is none."""
    for flag in NUMBERS:
        low, high = flag_range(flag[2]) or (0, 2**31 - 1)
        whole = isinstance(value, int) or float in scalars(flag[3])
        if type(value) is not bool and whole and low <= value <= high:
            with suppress_other_rules():
                make_one(flag, value)
        else:
            check_refused(flag, value)


@contextmanager
def suppress_other_rules() -> Iterator[None]:
    """Lets pass errors of rules that two flags have together."""
    try:
        yield
    except FlagError as error:
        assert "--devices must divide" in str(error), error


@pytest.mark.parametrize("value", ["a\0b", "x" * 256, f"runs/{'x' * 256}/a", "x/" * 2100, "\udcff", "ä" * 128, 7, b"a"])
def test_names_that_no_file_can_have(value: Any) -> None:
    """A NUL, more than 255 bytes, a lone surrogate; of every flag that is a name, also in lists."""
    for flag in NAMES:
        check_refused(flag, Path(value) if scalars(flag[3]) == {Path} and isinstance(value, str) else value)


def test_empty_names() -> None:
    """An empty path is the present folder."""
    for flag in NAMES:
        if Path not in scalars(flag[3]):
            check_refused(flag, "")


@pytest.mark.parametrize("value", ["no-such-name", "", 1e22, None])
def test_unknown_names_of_agents_and_other_choices(value: Any) -> None:
    """Of every flag with a list of choices."""
    for flag in CHOICES:
        if value is not None or type(None) not in get_args(flag[3]):
            check_refused(flag, value)


@pytest.mark.parametrize("value", ["1e22", "1e3", "nan", "0x10", "", "9" * 5000, "True", "x"])
def test_a_text_that_is_no_integer_is_refused_by_the_parser(value: str) -> None:
    """Exit code 2."""
    for arguments in (["train", "--seed"], ["train", "--num-evals"], ["lecture", "--num-workers"]):
        with pytest.raises(SystemExit, match="2"):
            command_line.read_arguments([*arguments, value])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "--seeds", "1", "1"], "--seeds must be one or more, each once, got [1, 1]: they must differ."),
        (
            ["compare", "--agents", "ppo", "ppo"],
            "--agents must be one or more, each once, got ['ppo', 'ppo']: they must differ.",
        ),
        (
            ["lecture", "--claims", "clip", "clip"],
            "--claims must be one or more, each once, got ['clip', 'clip']: they must differ.",
        ),
        (
            ["verify", "reinforce", "reinforce"],  # no flag
            "LOSSES must be one or more, each once, got ['reinforce', 'reinforce']: they must differ.",
        ),
        (["cost", "--devices", "1", "1"], "--devices must be one or more, each once, got [1, 1]: they must differ."),
        (
            ["bench", "--parts", "toys", "toys"],
            "--parts must be one or more, each once, got ['toys', 'toys']: they must differ.",
        ),
        (["bench", "--sizes"], "--sizes must be one or more, each once, got []."),
        (["train", "--reward"], "--reward must be one or more, got []."),
        (["train", "--num-evals", "-1"], "--num-evals must be at least 1, got -1."),
        (["train", "--n-episodes", str(10**12)], f"--n-episodes must be at most 1000000, got {10**12}."),
        (["train", "--ppo.clip-range", "1e308"], "--ppo.clip-range must be at most 1000000.0, got 1e+308."),
        (["train", "--learning-rate", "inf"], "--learning-rate must be a finite number, got inf."),
        (["train", "--log-completions", "-1"], "--log-completions must not be negative, got -1."),
        (["train", "--kl-coef", "1e-310"], "--kl-coef must be 0 or at least 1e-30, got 1e-310."),
        (["train", "--env-args", "task_seed", "nan"], "--env-args task_seed must be a finite number, got nan."),
        (["train", "--model", ""], "--model must not be empty, got ''."),
        (["sample", "--run", "r", "--num", "-1"], "--num must be at least 1, got -1."),
    ],
)
def test_the_message_names_flag_rule_and_value(arguments: list[str], message: str) -> None:
    """Without the frame in which tyro shows a ValueError."""
    with pytest.raises(FlagError) as caught:
        command_line.read_arguments(arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--seed", str(2**63 - 1), "--num-evals", "1", "--learning-rate", "1e-12", "--ppo.clip-range", "None"],
        ["train", "--reward-weights", "-1.0", "1.0", "--reward", "vader", "vader", "--out", "x" * 255],
        ["compare", "--seeds", "0", "7", "--agents", "ppo", "random", "--best-of-n", "1"],
        ["cost", "--devices", "1", "8", "--n-episodes", "8"],
        ["sample", "--run", "ä ö", "--prompt", "", "\udcff", "x" * 5000, "x" * 5000],
    ],
)
def test_unusual_values_are_accepted(arguments: list[str]) -> None:
    """Control: the ends of ranges, equal rewards, texts of any length as prompts."""
    command_line.read_arguments(arguments)


def test_defaults_are_in_their_ranges() -> None:
    """Control: of every command."""
    for name in COMMANDS:
        command_line.read_arguments([name, *REQUIRED.get(name, [])])


# -- configs that are not made by the command line ---------------------------------------------------------------------


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_field_of_another_type_is_refused(data: st.DataObject) -> None:
    """As a saved config may have it: every field is of its type and in its range, or the error is a `FlagError`."""
    name, flag, field, annotation = data.draw(st.sampled_from(FLAGS))
    value = data.draw(st.sampled_from([*ODD, None]) | st.integers() | st.floats() | st.text(max_size=3))
    if "." in flag:
        return
    try:
        config = make(name, {field: value})
    except FlagError as error:
        assert field.replace("_", "-") in str(error)
        return
    assert fits(getattr(config, field), annotation)


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value has a type; True is no number, and a number is finite."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in members
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(each, members[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if origin is types.UnionType or members:
        return any(fits(value, member) for member in members)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e31
    if annotation in (Path, str):
        return isinstance(value, annotation if annotation is str else Path | str)
    return type(value) is (annotation or type(None))


def test_agents_settings_are_checked_too() -> None:
    """Those of a saved config, for one, which are made before."""
    with pytest.raises(FlagError, match=r"^--ppo\.clip-range must be a number, got '0.2'"):
        tiny(settings={"ppo": {"clip_range": "0.2"}})


# -- what agents refuse ------------------------------------------------------------------------------------------------


def test_an_agents_own_error_names_the_flag() -> None:
    """Its settings are flags with a prefix; other messages stay as they are."""
    config = tiny()
    named = {
        "clip_range must be in [0, 1], got 2.": "--ppo.clip-range must be in [0, 1], got 2.",
        "n_episodes must be a multiple of num_generations.": "--n-episodes must be a multiple of num_generations.",
        "Prompts are too long.": "Prompts are too long.",
    }
    assert {message: name_flags(message, config, "ppo") for message in named} == named


def test_settings_that_do_not_fit_each_other_are_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left behind, and no folder above is either."""
    monkeypatch.setattr("experiments.trial.measure_baselines", lambda *_: pytest.fail("measured"))
    arguments = ["--env", "textenv/Toy-v0", "--agent", "grpo", "--n-episodes", "9", "--out", str(tmp_path / "a" / "b")]
    monkeypatch.setattr(sys, "argv", ["experiments", "train", *arguments])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert list(tmp_path.iterdir()) == []


# -- Weights & Biases --------------------------------------------------------------------------------------------------


class NoKey(Exception):
    """As wandb.errors.UsageError."""


@pytest.mark.parametrize("key", [False, True])
def test_a_missing_login_is_known_before_anything_is_measured(
    key: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a module that stands for wandb. Control: with a key the run goes on."""

    def login() -> bool:
        if not key:
            raise NoKey("No API key configured. Use `wandb login` to log in.")
        return True

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(login=login, __spec__=None))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("experiments.trial.measure_baselines", lambda *_: (_ for _ in ()).throw(ValueError("measured")))
    expected = "measured" if key else "^--wandb-project p needs a login: No API key configured.*WANDB_MODE=offline"
    with pytest.raises(FlagError, match=expected):
        command_line.train(tiny(wandb_project="p", out=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


# -- folders and files -------------------------------------------------------------------------------------------------


def test_an_output_that_is_no_empty_folder_is_refused(tmp_path: Path) -> None:
    """A file, a path below a file, a broken link: exit code 2, and all is as it was."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for name in ("file", "file/below", "dangling", "full"):
        with pytest.raises(FlagError, match="--out"):
            command_line.train(tiny(out=tmp_path / name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_refused_setting_removes_only_what_the_run_has_made(tmp_path: Path) -> None:
    """Neither a folder that was there before, nor a link to one, nor folders above it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for out in ("empty", "link", "new/run"):
        with pytest.raises(FlagError, match="--n-episodes"):
            command_line.train(tiny(agent="grpo", n_episodes=9, out=tmp_path / out))
    left = {path.name for path in tmp_path.rglob("*")}
    assert left - {"new"} == {"empty", "target", "link"} and (tmp_path / "link").is_symlink()
    assert "new" not in left


def test_the_command_line_prints_one_line() -> None:
    """`error: --flag must ...`, exit code 2, no traceback."""
    done = call("train", "--num-evals", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == "error: --num-evals must be at least 1, got -1."
