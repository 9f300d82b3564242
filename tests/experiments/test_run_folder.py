"""`config.json` of a run: what it holds, and what is refused as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agents import FORMAT_VERSION, files
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.opening import opened
from experiments.run_folder import read_config, write_config
from tests.helpers.commands import call, command
from tests.helpers.paths import DATA

REFUSED = r"config\.json is in format 1, which textenv 0\.1 \(commit b8391f7\) reads; this is textenv 0\.3"


def resume(folder: Path) -> None:
    """Opens a folder to resume the run in it."""
    with opened(TrialConfig(out=folder, resume=True), "run"):
        pass


def test_a_run_of_format_1_is_refused(tmp_path: Path) -> None:
    """By what reads its flags, and by what would resume it; nothing in its folder changes."""
    folder = Path(shutil.copytree(DATA / "format_1_run", tmp_path / "run"))
    before = (folder / "config.json").read_bytes()
    with pytest.raises(FlagError, match=REFUSED):
        read_config(folder)
    with pytest.raises(FlagError, match=REFUSED):
        resume(folder)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (folder / "config.json").read_bytes() == before


def test_a_run_of_this_format_is_read(tmp_path: Path) -> None:
    """Control: the same flags, written by this version, are read again."""
    config = TrialConfig(total_timesteps=123)
    write_config(config, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["format_version"] == FORMAT_VERSION
    assert read_config(tmp_path) == config


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
        (b'{"model_type": "gpt2"}', r"has no flags\); pass the folder that --out named"),  # that of a checkpoint
        (b'{"format_version": 2, "flags": 1}', r"holds no run \(config\.json has no flags\)"),
        (b'{"format_version": "2", "flags": {}}', r"format_version must be an integer"),
        (b'{"format_version": 3, "flags": {}}', r"config\.json was changed after it was written"),
    ],
)
def test_a_config_that_is_not_that_of_a_run_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    """By what reads its flags, and by what would resume a run that has trained."""
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises((FlagError, files.DamagedFile), match=message):
        read_config(tmp_path)
    with pytest.raises((FlagError, files.DamagedFile), match=message):
        resume(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == content


def rewrite(folder: Path, change: Any) -> None:
    """Changes the flags in `config.json`, as this version would have written them."""
    content = files.read_json(folder / "config.json")
    change(content["flags"])
    files.write_json(folder / "config.json", content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda flags: flags.update(samplers="x"), "has the flag samplers, which `train` of this version does"),
        (lambda flags: flags["ppo"].update(clip=1), r"--ppo\.clip: ppo has no such setting"),
        (lambda flags: flags.update(ppo=None), "ppo must be an object"),
        (lambda flags: flags.update(n_episodes="x"), "--n-episodes must be an integer, got 'x'"),
        (lambda flags: flags.update(agent=[]), "--agent must be a text"),
        (lambda flags: flags.update(agent="dqn"), "--agent must be one of"),
        (lambda flags: flags.update(out=3), "--out must be"),
        (lambda flags: flags.update(env_args=3), "--env-args must be"),
    ],
)
def test_flags_that_this_version_does_not_have(change: Any, message: str, tmp_path: Path) -> None:
    """By name or by type: a sentence that names the file and the flag."""
    write_config(TrialConfig(), tmp_path)
    read_config(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises((FlagError, files.DamagedFile), match=message) as error:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(error.value)


def test_a_comparison_is_not_read_as_a_trial(tmp_path: Path) -> None:
    """Its folder has other flags: the error says which folder to pass."""
    write_config(TrialConfig(), tmp_path)
    rewrite(tmp_path, lambda flags: flags.update(agents=["ppo"], seeds=[0]))
    with pytest.raises(FlagError, match="holds a comparison; pass the folder of one agent and seed in it"):
        read_config(tmp_path)
    rewrite(tmp_path, lambda flags: flags.pop("agents"))
    with pytest.raises(FlagError, match="has the flag seeds.*of this version does not have"):
        read_config(tmp_path)


def test_a_saved_format_below_the_run_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """A policy or an agent of a later format, in a run of this one: an error without a traceback."""
    run = tmp_path / "run"
    flags = ["--out", str(run), "--env", "textenv/Toy-v0", "--total-timesteps", "100", "--n-episodes", "16"]
    assert call("train", *flags).returncode == 0
    (run / "summary.json").unlink()
    for name, arguments in (
        ("agent.json", ["train", *flags, "--resume"]),
        ("policy.json", ["evaluate", "--run", str(run), "--env", "textenv/Toy-v0"]),
    ):
        path = run / "checkpoint" / name
        manifest = files.read_manifest(path.parent)
        saved = path.read_bytes()
        files.write_json(path, json.loads(saved) | {"format_version": FORMAT_VERSION + 1})
        own = {"files": manifest["files"] | {name: files.describe(path)}}
        files.write_json(path.parent / files.MANIFEST, manifest | own)
        done = call(*arguments)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
        assert f"{name} is in format {FORMAT_VERSION + 1}" in " ".join(done.stderr.split())
        path.write_bytes(saved)
        files.write_json(path.parent / files.MANIFEST, manifest)
