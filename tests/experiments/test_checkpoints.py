"""Checkpoints of a trial: the newest whole one is found, and what is not of this trial or format is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from agents import FORMAT_VERSION, files
from experiments.checkpoints import attachment, checkpoint_to_resume, newest_checkpoint
from experiments.errors import FlagError
from experiments.run_folder import write_config
from tests.helpers.commands import tiny
from tests.helpers.paths import DATA
from tests.helpers.storage import flip_a_bit, rewrite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trial with the checkpoints of updates 1 and 2, of one file each."""
    write_config(tiny(), tmp_path)
    files.write_json(tmp_path / "baselines.json", {"reference": 1.0})
    for update in (1, 2):
        save(tmp_path, update)
    return tmp_path


def save(folder: Path, update: int) -> None:
    """Writes a checkpoint."""
    counts: dict[str, Any] = {"num_timesteps": 10 * update, "num_updates": update, "seconds": 1.5, "metrics": {}}
    attach = attachment(folder, folder, **counts)
    files.write_folder(folder / "checkpoint", lambda new: (new / "a").write_text(str(update)), 2, attach)


def test_the_newest_whole_one_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Silently; if it is damaged, the one before, and that is said with the file and the update."""
    found = newest_checkpoint(folder, folder)
    assert found is not None and found.manifest["num_updates"] == 2 and found.passed_over == []
    flip_a_bit(folder / "checkpoint" / "a")
    older = newest_checkpoint(folder, folder)
    assert older is not None and older.folder == folder / "checkpoint.1" and older.manifest["num_updates"] == 1
    assert (folder / "checkpoint").is_dir()  # reading changes nothing
    resumed = checkpoint_to_resume(folder, folder, 2)
    assert resumed is not None and resumed.folder == folder / "checkpoint"
    said = capsys.readouterr().err
    assert f"{folder / 'checkpoint' / 'a'} is damaged" in said and "of update 1, is read instead" in said
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint"]
    assert files.verify(folder / "checkpoint")["num_updates"] == 1


def test_none_is_found_before_the_first(tmp_path: Path) -> None:
    """Also if its writing was stopped."""
    write_config(tiny(), tmp_path)
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / ".checkpoint.new").mkdir()
    (tmp_path / ".checkpoint.new" / "a").write_text("half")
    assert checkpoint_to_resume(tmp_path, tmp_path, 2) is None
    assert not (tmp_path / ".checkpoint.new").exists()


def test_if_none_is_whole_the_error_says_what_to_do(folder: Path) -> None:
    """It names the files."""
    for name in ("checkpoint", "checkpoint.1"):
        flip_a_bit(folder / name / "a")
    with pytest.raises(files.DamagedFile, match=r"remove all versions of the folder: the trial then begins") as error:
        checkpoint_to_resume(folder, folder, 2)
    assert all(str(folder / name / "a") in str(error.value) for name in ("checkpoint", "checkpoint.1"))


@pytest.mark.parametrize("name", ["config.json", "baselines.json"])
def test_the_files_of_another_run_are_refused(name: str, folder: Path) -> None:
    """They are whole, but not those with which the checkpoint was written."""
    content = files.read_json(folder / name)
    files.write_json(folder / name, content | {"more": 1})
    with pytest.raises(files.DamagedFile, match=rf"{name} is not the file with which .*checkpoint was written"):
        newest_checkpoint(folder, folder)
    files.remove(folder / name)
    with pytest.raises(files.DamagedFile, match=rf"{name} cannot be read"):
        newest_checkpoint(folder, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_updates": -1}, "num_updates must be an integer of at least 0, got -1"),
        ({"seconds": "x"}, "seconds must be a finite number"),
        ({"metrics": None}, "metrics must be an object"),
        ({"config": 3}, "config must be an object"),
    ],
)
def test_a_manifest_made_by_hand_is_refused(change: dict[str, Any], message: str, folder: Path) -> None:
    """By name and value, though its checksum is right."""
    files.remove(folder / "checkpoint.1")
    rewrite(folder / "checkpoint", files.MANIFEST, lambda manifest: manifest.update(change))
    with pytest.raises(files.DamagedFile, match=message):
        newest_checkpoint(folder, folder)


def test_other_formats_are_refused(folder: Path) -> None:
    """A later one, and an earlier one, which had no manifest; the message names the version that reads it."""
    later = {"format_version": FORMAT_VERSION + 1}
    rewrite(folder / "checkpoint", files.MANIFEST, lambda manifest: manifest.update(later))
    with pytest.raises(FlagError, match=r"manifest\.json is in format 4, which a later version of textenv reads"):
        newest_checkpoint(folder, folder)
    for name in ("checkpoint", "checkpoint.1"):
        files.remove(folder / name)
    shutil.copytree(DATA / "format_2", folder / "checkpoint")
    with pytest.raises(FlagError, match=r"agent\.json is in format 2, which textenv 0\.2 .* reads"):
        newest_checkpoint(folder, folder)
    assert json.loads((folder / "checkpoint" / "agent.json").read_text())["format_version"] == 2
