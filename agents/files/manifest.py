"""The manifest of a folder: the sizes and SHA-256 checksums of its files, and what was attached."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from agents.files.json_objects import DamagedFile, JsonObject, check_types, read_json

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> JsonObject:
    """Returns the manifest of a folder: `folder`, its name; `files`, by relative path; and what was attached.

    Raises:
        DamagedFile: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    check_types(path, manifest, {"folder": str, "files": dict})
    for name in manifest["files"]:
        if not _is_below(name):
            raise DamagedFile(f"{path} must list files of its folder, got {name!r:.100}.")
    return manifest


def _is_below(name: str) -> bool:
    """Whether a relative path stays in its folder, on every system."""
    parts, elsewhere = PurePosixPath(name).parts, PureWindowsPath(name)
    return bool(parts) and ".." not in parts and not (elsewhere.anchor or name.startswith("/") or "\\" in name)
