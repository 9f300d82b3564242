"""`config.json` of a run: its flags, fingerprints of what they name, and the versions that it began with.

It is written once, when the run begins.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

from agents import FORMAT_VERSION, check_format, files
from experiments.errors import FlagError
from experiments.fingerprints import sources, surroundings

CONFIG = "config.json"


def write_config(config: Any, folder: Path, name: str = CONFIG) -> None:
    """Writes `config.json`: the flags, the fingerprints of what they name, versions, threads and device."""
    content = {
        "format_version": FORMAT_VERSION,
        "flags": plain(config),
        "sources": sources(config),
        **surroundings(getattr(config, "device", "cpu")),
    }
    files.write_json(folder / name, content, sync=True)


def read_saved_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Returns the content of a folder's `config.json`.

    Raises:
        FlagError: the file is not that of a run (a checkpoint has a `config.json` too), or has another format version.
        DamagedFile: the file was cut off or changed.
    """
    path = folder / name
    content = files.read_object(path)
    if not isinstance(content.get("flags"), dict):  # before its format: a file without flags has none of ours
        raise FlagError(f"{str(folder)!r} holds no run ({path.name} has no flags); pass the folder that --out named.")
    try:
        check_format(path, content)
    except ValueError as error:
        raise FlagError(str(error)) from error
    files.check_unchanged(path, content)
    files.check_types(path, content, {"sources": dict, "versions": dict, "threads": int, "device": str})
    return content


def read_config(folder: Path, kind: type[Any]) -> Any:
    """Returns the flags in a folder's `config.json` as a dataclass of type `kind`.

    Raises:
        FlagError: the folder holds no run, or a run of another format version or with other flags than this version's.
        DamagedFile: the file was cut off or changed.
    """
    if not (folder / CONFIG).is_file():
        raise FlagError(f"{str(folder)!r} holds no run (no config.json); pass the folder of one agent and seed.")
    path = folder / CONFIG
    flags = read_saved_config(folder)["flags"]
    hints = get_type_hints(kind)
    _check_names(path, flags, hints)
    values = {}
    for name, value in flags.items():
        if dataclasses.is_dataclass(hints[name]):  # an agent's settings
            files.check_types(path, flags, {name: dict})
            _check_names(path, value, get_type_hints(hints[name]), f"{name}.")
            values[name] = hints[name](**value)
        else:
            values[name] = Path(value) if name == "out" and isinstance(value, str) else value
    try:
        return kind(**values)
    except FlagError as error:
        raise FlagError(f"{path}: {error}") from error


def plain(config: Any) -> dict[str, Any]:
    """Returns a config as a dict of JSON values."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return content


def _check_names(path: Path, flags: dict[str, Any], known: dict[str, Any], prefix: str = "") -> None:
    """Raises a FlagError if there are flags that this version does not have; their types are checked elsewhere."""
    if unknown := flags.keys() - known.keys():
        raise FlagError(
            f"{path} has the flag {prefix}{min(unknown)}, which `train` of this version does not have; pass the folder "
            "of one agent and seed, written by this version."
        )
