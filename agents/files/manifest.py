"""The manifest of a folder: the sizes and SHA-256 checksums of its files, and what was attached."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from agents.files.atomic import read_bytes
from agents.files.json_objects import CHECKSUM, DamagedFile, JsonObject, check_types, parse, read_json

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


def is_of_others(path: Path) -> bool:
    """Whether a `manifest.json` is one that another program wrote: JSON, and not an object with our fields.

    A file that is not JSON, or lacks one of the fields, may be a damaged manifest of ours: it counts as one.
    """
    if not path.is_file():
        return False
    try:
        content = parse(read_bytes(path))
    except (OSError, ValueError):
        return False
    return not (isinstance(content, dict) and (CHECKSUM in content or {"folder", "files"} <= content.keys()))


def _is_below(name: str) -> bool:
    """Whether a relative path stays in its folder, on every system."""
    parts, elsewhere = PurePosixPath(name).parts, PureWindowsPath(name)
    return bool(parts) and ".." not in parts and not (elsewhere.anchor or name.startswith("/") or "\\" in name)
