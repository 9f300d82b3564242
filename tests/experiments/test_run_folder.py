"""Folders of runs: never overwritten, resumed only with the same flags; a run of another format is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from agents import FORMAT_VERSION
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.run_folder import open_folder, read_config, write_config
from tests.helpers.commands import command, tiny
from tests.helpers.paths import DATA


def test_folders_are_never_overwritten(tmp_path: Path) -> None:
    """A folder that is not empty is refused, and so is resuming a run that does not exist."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        open_folder(tiny(out=tmp_path), "x", "now")
    with pytest.raises(ValueError, match="holds no run to resume"):
        open_folder(tiny(out=tmp_path / "new", resume=True), "x", "now")
    config = tiny(out=tmp_path / "used")
    assert open_folder(config, "x", "now") == tmp_path / "used"
    with pytest.raises(ValueError, match="add --resume"):
        open_folder(config, "x", "now")
    with pytest.raises(ValueError, match="holds no run"):
        read_config(tmp_path, TrialConfig)
    write_config(config, tmp_path)
    assert read_config(tmp_path, TrialConfig) == config


REFUSED = r"config\.json is in format 1, which textenv 0\.1 \(commit b8391f7\) reads; this is textenv 0\.2"


def test_a_run_of_format_1_is_refused(tmp_path: Path) -> None:
    """By what reads its flags, and by what would resume it; nothing in its folder changes."""
    folder = Path(shutil.copytree(DATA / "format_1_run", tmp_path / "run"))
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FlagError, match=REFUSED):
        read_config(folder, TrialConfig)
    with pytest.raises(FlagError, match=REFUSED):
        open_folder(TrialConfig(out=folder, resume=True), "run", "now")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == before


def test_a_run_of_this_format_is_read(tmp_path: Path) -> None:
    """Control: the same flags, written by this version, are read again."""
    config = TrialConfig(total_timesteps=123)
    write_config(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION
    assert read_config(tmp_path, TrialConfig) == config


def test_the_command_line_refuses_it_in_a_sentence() -> None:
    """Exit code 2, no traceback."""
    done = command("evaluate", "--run", str(DATA / "format_1_run"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "is in format 1" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"config\.json must be a JSON object, but cannot be read"),
        (b"not json", r"config\.json must be a JSON object, but cannot be read"),
        (b"\xff", r"config\.json must be a JSON object, but cannot be read"),
        (b"[]", r"config\.json must be a JSON object, got \[\]"),
        (b"null", r"config\.json must be a JSON object, got None"),
        (b'{"model_type": "gpt2"}', r"holds no run \(config\.json has no flags\)"),  # that of a checkpoint
        (b'{"format_version": 2, "flags": 1}', r"holds no run \(config\.json has no flags\)"),
        (b'{"format_version": "2", "flags": {}}', r"format_version must be an integer"),
    ],
)
def test_a_config_that_is_not_that_of_a_run_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """By what reads its flags, and by what would resume it."""
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FlagError, match=message):
        read_config(tmp_path, TrialConfig)
    with pytest.raises(FlagError, match=message):
        open_folder(TrialConfig(out=tmp_path, resume=True), "run", "now")


def test_a_saved_format_below_the_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """A policy or an agent of a later format, in a run of this one: `evaluate` and `--resume` exit with 2."""
    run = tmp_path / "run"
    flags = ["--out", str(run), "--env", "textenv/Toy-v0", "--total-timesteps", "100", "--n-episodes", "16"]
    assert command("train", *flags).returncode == 0
    (run / "summary.json").unlink()
    for name, arguments in (
        ("agent.json", ["train", *flags, "--resume"]),
        ("policy.json", ["evaluate", "--run", str(run)]),
    ):
        path = run / "checkpoint" / name
        saved = path.read_text()
        path.write_text(json.dumps(json.loads(saved) | {"format_version": FORMAT_VERSION + 1}))
        done = command(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert f"{name} is in format {FORMAT_VERSION + 1}" in " ".join(done.stderr.split())
        path.write_text(saved)
