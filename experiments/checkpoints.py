"""Checkpoints of a trial: `checkpoint/` is the newest, `checkpoint.1/` the one before.

The manifest of a checkpoint has its files, the trial's counts, and checksums of the trial's other files: of
`config.json`, of the run's baselines, and of `metrics.jsonl` up to its update.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agents import FORMAT_VERSION, check_format, files
from agents.files import JsonObject
from experiments.errors import FlagError
from experiments.run_folder import CONFIG
from textenv.data import printable

CHECKPOINT = "checkpoint"
BASELINES = "baselines.json"


class Checkpoint(NamedTuple):
    """A checkpoint that is whole, its manifest, and why newer ones were passed over."""

    folder: Path
    manifest: JsonObject
    passed_over: Sequence[str] = ()

    def print_passed_over(self) -> None:
        """Prints why newer checkpoints were passed over, if there are any."""
        if self.passed_over:
            older = f"{self.folder}, of update {self.manifest['num_updates']}, is read instead."
            print(printable(f"{' '.join(self.passed_over)} {older}"), file=sys.stderr)


def attachment(folder: Path, initial: Path, **counts: object) -> JsonObject:
    """What a checkpoint's manifest has besides its files.

    Args:
        folder: the trial's folder.
        initial: the folder of the run's initial policy and baselines.
        counts: num_timesteps, num_updates, seconds and metrics.
    """
    return {
        "format_version": FORMAT_VERSION,
        "config": files.describe(folder / CONFIG),
        "baselines": files.describe(initial / BASELINES),
        **counts,
    }


def newest_checkpoint(folder: Path, initial: Path | None = None) -> Checkpoint | None:
    """Returns the newest whole checkpoint of a trial, None if there is none.

    Args:
        folder: the trial's folder.
        initial: the folder of the run's baselines, if they are to be compared with the checkpoint's.

    Raises:
        DamagedFile: no checkpoint is whole, or it does not belong to the trial.
        FlagError: another format; the message names the file.
    """
    path = folder / CHECKPOINT
    try:
        found = files.newest_whole(path)
    except files.DamagedFile as error:
        _check_earlier_format(path)
        raise files.DamagedFile(
            f"{error} Restore it from a copy; or remove all versions of the folder: the trial then begins anew."
        ) from error
    if found is None:
        return None
    newest, passed_over = found
    manifest = files.read_manifest(newest)
    where = newest / files.MANIFEST
    _check_format(where, manifest)
    counts = {"num_timesteps": int, "num_updates": int, "seconds": float}
    files.check_types(where, manifest, counts | {"metrics": dict, "config": dict, "baselines": dict})
    _check_same(folder / CONFIG, manifest["config"], newest)
    if initial is not None:
        _check_same(initial / BASELINES, manifest["baselines"], newest)
    return Checkpoint(newest, manifest, passed_over)


def checkpoint_to_resume(folder: Path, initial: Path, keep: int) -> Checkpoint | None:
    """Returns the newest whole checkpoint as `checkpoint/`; it gets this name, and damaged ones are removed.

    The writing of a checkpoint that was stopped is ended first. What was passed over is printed.
    """
    path = folder / CHECKPOINT
    files.finish_folder(path, keep)
    found = newest_checkpoint(folder, initial)
    if found is None:
        return None
    found.print_passed_over()
    files.promote(path, found.folder)  # else a damaged one would be kept, and a whole one removed in its place
    files.remove_versions(path, keep)
    return found._replace(folder=path)


def _check_earlier_format(path: Path) -> None:
    """Raises a FlagError for a checkpoint of a format that had no manifest."""
    if not (path / files.MANIFEST).exists() and (path / "agent.json").is_file():
        _check_format(path / "agent.json", files.read_object(path / "agent.json"))


def _check_format(path: Path, content: Mapping[str, object]) -> None:
    try:
        check_format(path, content)
    except ValueError as error:
        raise FlagError(str(error)) from error


def _check_same(path: Path, expected: Mapping[str, object], checkpoint: Path) -> None:
    if files.describe(path) != expected:
        raise files.DamagedFile(
            f"{path} is not the file with which {checkpoint} was written. Restore it from a copy, or choose another "
            "folder."
        )
