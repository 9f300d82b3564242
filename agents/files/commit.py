"""How a new version of a folder takes the place of the one before. Both ways may be stopped anywhere, and repeated.

`replace_folder` renames folders, and keeps earlier versions:

    .NAME.new -> NAME -> NAME.1 -> NAME.2 ...

`update_folder` renames files, so that what others put into the folder stays, also while it runs:

    NAME/.new/FILE -> NAME/FILE

The new version is read from `.new` until all of it is in place.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import agents.files.atomic as atomic
from agents.files.json_objects import DamagedFile
from agents.files.manifest import MANIFEST, read_manifest


def replace_folder(path: Path, new: Path, keep: int) -> None:
    """Renames a folder `new` to `path` after the versions that are there, and removes all but `keep` versions."""
    if os.path.lexists(path):
        free = 1
        while os.path.lexists(f"{path}.{free}"):
            free += 1
        for number in range(free - 1, 0, -1):
            old = Path(f"{path}.{number}")
            atomic.perform("rename", old, partial(os.replace, old, f"{path}.{number + 1}"))
        atomic.perform("rename", path, lambda: os.replace(path, f"{path}.1"))
    atomic.perform("rename", path, lambda: os.replace(new, path))
    atomic.sync_to_disk(path.parent)
    remove_versions(path, keep)


def promote(path: Path, version: Path) -> None:
    """Renames an earlier version of a folder to `path`, after all newer ones were removed."""
    path, version = Path(os.path.abspath(path)), Path(os.path.abspath(version))
    if version == path:
        return
    for newer in (path, *(each for each in earlier_versions(path) if _number(each) < _number(version))):
        atomic.remove(newer)
    atomic.perform("rename", path, lambda: os.replace(version, path))


def remove_versions(path: Path, keep: int) -> None:
    """Removes all but `keep` versions of a folder: NAME.1, ... are ours."""
    for version in earlier_versions(path):
        if _number(version) >= keep:
            atomic.remove(version)


def update_folder(path: Path, new: Path, replaced: Sequence[str]) -> None:
    """Puts the files of a folder `new` inside `path` in their places in `path`; removes `new`, and what it replaces.

    That is the files in the manifest of `path`, and those whose path fits a pattern of `replaced`.
    """
    names = sorted(read_manifest(new)["files"])
    for name in names:
        for link in _linked_folders(path, name):  # a link is replaced, not written through
            atomic.remove(link)
        _put(new / name, path / name)
    try:
        old = set(read_manifest(path)["files"])
    except DamagedFile:
        old = set()
    found = (file for pattern in replaced for file in path.glob(pattern) if not file.is_dir())
    old |= {file.relative_to(path).as_posix() for file in found}
    for name in sorted(old - set(names)):
        if not (path / name).is_dir() and not _linked_folders(path, name):
            atomic.remove(path / name)
            with suppress(OSError):  # a folder that others use stays
                (path / name).parent.rmdir()
    _put(new / MANIFEST, path / MANIFEST)
    for folder in sorted({(path / name).parent for name in names} | {path}):
        atomic.sync_to_disk(folder)
    atomic.remove(new)


def _put(source: Path, target: Path) -> None:
    """Puts a file in a second place, as a hard link where the disk has them."""
    if target.exists() and not target.is_symlink() and os.path.samefile(source, target):  # put there before a crash
        return
    beside = atomic.beside(target, "new")
    atomic.remove(beside)

    def link() -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, beside)
        except OSError:
            shutil.copy2(source, beside)
            atomic.sync_to_disk(beside)

    atomic.perform("write", target, link)
    atomic.perform("rename", target, lambda: os.replace(beside, target))


def _linked_folders(path: Path, name: str) -> list[Path]:
    """The folders between `path` and `path / name` that are links."""
    return [folder for each in Path(name).parents if (folder := path / each) != path and folder.is_symlink()]


def earlier_versions(path: Path) -> list[Path]:
    """NAME.1, NAME.2, ... beside a folder, the newest first."""
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return sorted((p for p in beside if p.stem == path.name and p.suffix[1:].isdecimal()), key=_number)


def _number(version: Path) -> int:
    return int(version.suffix[1:])


def check_versions(path: Path, keep: int) -> None:
    """Raises a ValueError if a folder NAME.1, ... beside `path` has a manifest, and is no earlier version of `path`."""
    for version in earlier_versions(path) if keep > 1 else []:
        try:
            belongs = read_manifest(version)["folder"] == path.name
        except DamagedFile:
            continue
        if not belongs:
            raise ValueError(f"Choose another folder than {str(path)!r}: {str(version)!r} is not a version of it.")
