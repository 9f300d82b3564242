"""Folders that are there whole or not at all: a policy, an agent, a checkpoint.

A folder is written to the side, gets a manifest of the sizes and SHA-256 checksums of its files, and is synced to the
disk. From then on it is the newest version, wherever a crash stops what follows (`agents.files.commit`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import agents.files.atomic as atomic
from agents.files.commit import check_versions, earlier_versions, replace_folder, update_folder
from agents.files.json_objects import DamagedFile, JsonObject, write_json
from agents.files.manifest import MANIFEST, is_of_others, read_manifest


def write_folder(
    path: Path,
    fill: Callable[[Path], object],
    keep: int = 1,
    attach: JsonObject | None = None,
    replaced: Sequence[str] = (),
) -> None:
    """Writes a folder by `fill(temporary)`, with a manifest.

    Args:
        path: the folder.
        fill: writes the files into the empty folder that it is given.
        keep: how many versions to keep, the new one included. With one, files in the folder that are not in its
            manifest belong to somebody else, and stay, unless a new file has their name. With more, the folder and
            NAME.1, ... beside it are ours alone.
        attach: further content of the manifest.
        replaced: patterns (`Path.glob`) of files that are removed from the folder, whoever wrote them.

    Raises:
        StorageError: the disk is full or cannot be written; the earlier versions are as they were.
        ValueError: the folder has a `manifest.json` of another program, or a folder beside it that is not an earlier
            version has the name of one; nothing was written.
    """
    path = Path(os.path.abspath(path))
    check_versions(path, keep)
    if not path.is_symlink() and is_of_others(path / MANIFEST):
        raise ValueError(
            f"Choose another folder than {str(path)!r}: its {MANIFEST} was written by another program, and would be "
            "replaced."
        )
    if keep == 1 and path.is_symlink():
        atomic.remove(path)
    finish_folder(path, keep, replaced)
    new = _pending(path)[keep == 1]
    existed = path.exists()
    try:
        atomic.perform("make", path, lambda: new.mkdir(parents=True))
        atomic.perform("write", path, lambda: fill(new))
        names = sorted(file.relative_to(new).as_posix() for file in new.rglob("*") if file.is_file())
        files = {name: describe(new / name) for name in names}
        write_json(new / MANIFEST, {**(attach or {}), "folder": path.name, "files": files})
        for name in (*names, MANIFEST, *sorted({str(Path(name).parent) for name in names} | {"."})):
            atomic.sync_to_disk(new / name)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        if not existed:
            with suppress(OSError):
                path.rmdir()
        raise
    _commit(new, path, keep, replaced)


def finish_folder(path: Path, keep: int = 1, replaced: Sequence[str] = ()) -> None:
    """Ends a `write_folder` that was stopped: a whole version gets its place, one that is not whole is removed."""
    path = Path(os.path.abspath(path))
    for stopped in filter(os.path.lexists, _pending(path)):
        if is_whole(stopped):
            _commit(stopped, path, keep, replaced)
        atomic.remove(stopped)
        if stopped.parent == path and _is_empty(path):  # the first version was not completed
            path.rmdir()


def verify(folder: Path) -> JsonObject:
    """Returns the manifest of a folder of `write_folder`.

    Raises:
        DamagedFile: a file is missing or changed.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise DamagedFile(f"{file} is missing; the manifest of its folder lists it.")
        if describe(file) != expected:
            raise DamagedFile(f"{file} is damaged: its size or checksum is not that in the manifest of its folder.")
    return manifest


def check_saved(path: str | os.PathLike[str]) -> None:
    """Checks a folder that may have been written by `write_folder`, or by somebody else.

    Raises:
        DamagedFile: it has a manifest of `write_folder`, and a file is missing or changed.
    """
    manifest = Path(path) / MANIFEST
    if not manifest.is_file() or is_of_others(manifest):
        return
    try:
        verify(Path(path))
    except DamagedFile as error:
        raise DamagedFile(f"{error} If the folder was changed on purpose, remove {manifest}.") from error


def is_whole(folder: Path) -> bool:
    """Whether a folder has its manifest and all files of it as they were written."""
    try:
        verify(folder)
    except DamagedFile:
        return False
    return True


def newest_whole(path: Path) -> tuple[Path, list[str]] | None:
    """Returns the newest whole version of a folder of `write_folder`, and why newer ones were passed over.

    Returns:
        None where there is no version at all.

    Raises:
        DamagedFile: no version is whole; the message names a damaged file of each.
    """
    path = Path(os.path.abspath(path))
    for stopped in _pending(path):
        if is_whole(stopped):
            return stopped, []
    passed_over: list[str] = []
    exists = os.path.lexists(path)
    for folder in [path, *earlier_versions(path)] if exists else earlier_versions(path):
        try:
            if folder == path or read_manifest(folder)["folder"] == path.name:
                verify(folder)
                return folder, passed_over if exists else [f"{path} is missing.", *passed_over]
        except DamagedFile as error:
            passed_over.append(str(error))
    if not passed_over or (len(passed_over) == 1 and _is_empty(path)):  # no version was completed
        return None
    raise DamagedFile(f"No whole version of {str(path)!r} is left: {' '.join(passed_over)}")


def describe(file: Path) -> JsonObject:
    """Returns `size` (bytes) and `sha256` of a file.

    Raises:
        DamagedFile: it cannot be read.
    """
    try:
        atomic.check_regular(file)
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            return {"size": os.fstat(content.fileno()).st_size, "sha256": digest}
    except OSError as error:
        raise DamagedFile(f"{file} cannot be read: {error.strerror}.") from error


def _is_empty(path: Path) -> bool:
    """Whether a folder contains nothing but a version that was not completed."""
    return path.is_dir() and all(entry.name == ".new" for entry in path.iterdir())


def _pending(path: Path) -> list[Path]:
    """Where a new version is written: beside the folder if several are kept, else inside."""
    return [atomic.beside(path, "new"), path / ".new"]


def _commit(new: Path, path: Path, keep: int, replaced: Sequence[str]) -> None:
    if new.parent == path:
        update_folder(path, new, replaced)
    else:
        replace_folder(path, new, keep)
