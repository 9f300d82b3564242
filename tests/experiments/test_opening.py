"""Folders of runs: never overwritten, begun or resumed by one command, in use by one process."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from agents import Diverged, files
from experiments.agent_classes import Settings
from experiments.errors import FlagError, Stopped
from experiments.lock import GUARD, LOCK, locked
from experiments.opening import check_links, opened, resume_command
from experiments.run_folder import read_config
from tests.helpers.commands import tiny


def opens(config: Any) -> Path:
    """Opens a folder and leaves it without an error."""
    with opened(config, "x") as folder:
        assert (folder / LOCK).is_file()
    return folder


def begun(folder: Path, **flags: Any) -> Path:
    """A folder with a run that has begun to train."""
    opens(tiny(out=folder, **flags))
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folders_are_never_overwritten(tmp_path: Path) -> None:
    """A folder that is not empty is refused; with --resume too, if it holds something else than a run."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FlagError, match="not empty: add --resume"):
        opens(tiny(out=tmp_path))
    with pytest.raises(FlagError, match=r"holds no run to resume \(no config\.json\)"):
        opens(tiny(out=tmp_path, resume=True))
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    config = tiny(out=tmp_path / "used")
    assert opens(config) == tmp_path / "used"
    with pytest.raises(FlagError, match="add --resume"):
        opens(config)


@pytest.mark.parametrize("left", ["nothing", "empty", "lock", "killed while it wrote", "config", "torn config"])
def test_resume_begins_where_there_is_nothing_yet(left: str, tmp_path: Path) -> None:
    """No folder, an empty one, or what a start that did not get far has left: one command can be repeated."""
    folder = tmp_path / "run"
    if left != "nothing":
        folder.mkdir()
    if left == "lock":
        files.write_json(folder / LOCK, {"host": "elsewhere", "pid": 1, "started": 0.0})
    if left == "killed while it wrote":
        (folder / ".config.json.new").write_text("{")
    if left in ("config", "torn config"):
        opens(tiny(out=folder))
        (folder / "initial").mkdir()
        (folder / "initial" / "policy.json").write_text("{}")
    if left == "torn config":
        (folder / "config.json").write_text("{")
    config = tiny(out=folder, resume=True, take_over=True)
    opens(config)
    assert read_config(folder).total_timesteps == config.total_timesteps
    assert (folder / "initial").exists() == (left == "config")  # that of an unknown config is made again
    opens(config)


def test_a_users_folder_is_not_taken_for_a_start(tmp_path: Path) -> None:
    """A folder named `initial` alone is no run: it is refused, and stays."""
    (tmp_path / "initial").mkdir()
    (tmp_path / "initial" / "mine.txt").write_text("mine")
    with pytest.raises(FlagError, match="holds no run"):
        opens(tiny(out=tmp_path, resume=True))
    assert contents(tmp_path) == {"initial/mine.txt": b"mine"}


def test_a_config_that_is_lost_after_training_is_an_error(tmp_path: Path) -> None:
    """Cut off, changed or removed: the run is not begun anew over its results."""
    folder = begun(tmp_path / "run")
    config = tiny(out=folder, resume=True)
    whole = (folder / "config.json").read_bytes()
    for content in (b"", whole[:-20], whole.replace(b"400", b"401")):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(files.DamagedFile, match=r"config\.json.*Restore it from a copy"):
            opens(config)
        assert (folder / "config.json").read_bytes() == content
    (folder / "config.json").unlink()
    with pytest.raises(FlagError, match=r"no config\.json"):
        opens(config)
    (folder / "config.json").write_bytes(whole)
    opens(config)


def test_resume_needs_a_folder() -> None:
    """A new folder each time would never resume."""
    with pytest.raises(FlagError, match="--resume needs --out"):
        opens(tiny(resume=True))


def test_default_folders_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of commands that start in the same second too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.opening.time.strftime", lambda format: "now")
    assert [opens(tiny()).as_posix() for _ in range(3)] == ["runs/x-now", "runs/x-now-2", "runs/x-now-3"]


def test_config_is_written_once(tmp_path: Path) -> None:
    """Resuming leaves it as it is; it has flags, fingerprints, versions, threads and the device."""
    folder = begun(tmp_path / "run")
    before = (folder / "config.json").read_bytes()
    opens(tiny(out=folder, resume=True, log_completions=3))
    assert (folder / "config.json").read_bytes() == before
    content = json.loads(before)
    assert {"format_version", "flags", "sources", "versions", "threads", "device", "checksum"} == set(content)


def test_other_flags_are_refused_or_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is named with both values; with --accept-changes the run continues, and keeps what was accepted."""
    folder = begun(tmp_path / "run")
    changed: dict[str, Any] = {"out": folder, "resume": True, "eval_episodes": 9, "num_evals": 7}
    with pytest.raises(FlagError, match=r"eval_episodes was 256 and is 9\. num_evals was 3 and is 7\."):
        opens(tiny(**changed))
    opens(tiny(**changed, accept_changes=True))
    assert "eval_episodes was 256 and is 9." in capsys.readouterr().err
    (row,) = files.read_rows(folder / "accepted_changes.jsonl")
    assert row["changes"] == ["eval_episodes was 256 and is 9.", "num_evals was 3 and is 7."]


@pytest.mark.parametrize(
    "flags", [{"temperature": 2.0}, {"dtype": "bfloat16"}, {"separate_critic": True}, {"agent": "rloo"}]
)
def test_flags_of_the_saved_policy_are_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    """With --accept-changes too: they would have no effect."""
    folder = begun(tmp_path / "run")
    with pytest.raises(FlagError, match=rf"--accept-changes: {min(flags)} was .* choose another --out"):
        opens(tiny(out=folder, resume=True, accept_changes=True, **flags))


def test_files_that_lock_a_folder_are_no_contents(tmp_path: Path) -> None:
    """The guard of Windows, which is there before the run begins."""
    (tmp_path / GUARD).touch()
    opens(tiny(out=tmp_path))
    assert (tmp_path / "config.json").is_file()


# -- errors and stops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("existed", [False, True])
def test_an_error_before_training_leaves_nothing(existed: bool, tmp_path: Path) -> None:
    """A new folder is removed, also below a link; an empty one that was there is empty again."""
    folder = tmp_path / "run"
    target = tmp_path / "target"
    if existed:
        target.mkdir()
        folder.symlink_to(target)
    with pytest.raises(ValueError, match="bad reward"), opened(tiny(out=folder, resume=existed), "x"):
        (folder / "initial").mkdir()
        raise ValueError("bad reward")
    assert folder.is_symlink() == existed and folder.exists() == existed
    assert not existed or list(target.iterdir()) == []


def test_a_setting_that_cannot_be_used_leaves_nothing(tmp_path: Path) -> None:
    """An optimizer that fails: found before anything is made. Control: with another one the folder is made."""
    settings = Settings({"ppo": {"optimizer": "torch.optim:LBFGS"}})
    with pytest.raises(FlagError, match="--ppo.optimizer must make a torch optimizer.*LBFGS"):
        opens(tiny(out=tmp_path / "run", settings=settings))
    assert list(tmp_path.iterdir()) == []
    opens(tiny(out=tmp_path / "run", settings=Settings({"ppo": {"optimizer": "torch.optim:AdamW"}})))
    assert (tmp_path / "run" / "config.json").is_file()


def test_what_diverged_is_resumed_with_other_settings(tmp_path: Path) -> None:
    """The same ones would end in the same way."""
    with pytest.raises(Diverged) as raised, opened(tiny(out=tmp_path / "run"), "x"):
        (tmp_path / "run" / "checkpoint").mkdir()
        raise Diverged("x")
    (note,) = raised.value.__notes__
    assert note.startswith("To resume with other settings: ") and "--resume --accept-changes, and for example" in note


@pytest.mark.parametrize("error", [ValueError("x"), Stopped(15), KeyboardInterrupt()])
def test_a_stop_says_how_to_resume(error: BaseException, tmp_path: Path) -> None:
    """After the first checkpoint of a run every error, and every stop, has the command; the lock is released."""
    folder = tmp_path / "run"
    with pytest.raises(type(error)) as raised, opened(tiny(out=folder), "x"):
        (folder / "checkpoint").mkdir()
        raise error
    (note,) = raised.value.__notes__
    assert note.startswith("To resume: ") and f"--out {folder} --resume" in note
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "config.json"]


def test_the_command_to_resume_is_this_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """All its arguments, quoted, with --out and --resume once; --take-over is for one start only."""
    main = "/somewhere/experiments/__main__.py"
    given = ["train", "--out", "a b", "--resume", "--take-over", "--accept-changes", "--prompts", "my prompts.txt"]
    for own in (given, ["train", "--out=old", "--prompts", "my prompts.txt"]):
        monkeypatch.setattr(sys, "argv", [main, *own])
        command = resume_command(Path("new folder"))
        accepted = ["--accept-changes"] if own is given else []  # config.json has the flags of the first start
        assert shlex.split(command) == [
            *("python", "-m", "experiments", "train", *accepted, "--prompts", "my prompts.txt"),
            *("--out", "new folder", "--resume"),
        ]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    """With --resume too; nothing in it changes."""
    folder = begun(tmp_path / "run")
    with locked(folder):
        before = contents(folder)
        with pytest.raises(FlagError, match="in use by process"):
            opens(tiny(out=folder, resume=True))
        assert contents(folder) == before


# -- links -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoint", "initial/policy.json", ".checkpoint.new", "wandb"])
def test_links_inside_a_run_are_refused(name: str, tmp_path: Path) -> None:
    """Files and folders, dangling ones too: the error names the link, and nothing behind it changes."""
    target = tmp_path / "target"
    for kind in ("file", "folder", "nothing"):
        folder = begun(tmp_path / kind)
        if kind == "file":
            target.write_text("mine")
        if kind == "folder":
            target.unlink()
            target.mkdir()
        if kind == "nothing":
            target.rmdir()
        link = folder / name
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with pytest.raises(FlagError, match=f"{link.name}' is a link"):
            opens(tiny(out=folder, resume=True))
        assert target.exists() == (kind != "nothing") and (kind != "file" or target.read_text() == "mine")
        link.unlink()
        opens(tiny(out=folder, resume=True))


def test_links_that_are_not_ours(tmp_path: Path) -> None:
    """The folder itself may be a link; Weights & Biases makes links in its own folder."""
    begun(tmp_path / "target")
    (tmp_path / "run").symlink_to(tmp_path / "target")
    (tmp_path / "target" / "wandb").mkdir()
    (tmp_path / "target" / "wandb" / "latest-run").symlink_to(tmp_path)
    check_links(tmp_path / "run")
    opens(tiny(out=tmp_path / "run", resume=True))
