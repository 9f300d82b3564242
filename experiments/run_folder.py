"""The folder of a run: its `config.json`, and the checks before it is created or resumed."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import textenv
from agents import FORMAT_VERSION, check_format, read_object
from experiments.config import AgentFlags
from experiments.errors import FlagError


def write_config(config: Any, folder: Path) -> None:
    """Writes `config.json`: the flags, and the versions of the packages that the run uses."""
    packages = ("gymnasium", "torch", "transformers", "numpy", "scipy", "stable-baselines3", "sb3-contrib")
    versions = {"textenv": textenv.__version__} | {name: version(name) for name in packages}
    versions["python"] = platform.python_version()
    content = {
        "format_version": FORMAT_VERSION,
        "flags": plain(config),
        "versions": versions,
        "threads": torch.get_num_threads(),
    }
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")


def read_flags(folder: Path) -> dict[str, Any]:
    """Returns the flags in a folder's `config.json` as JSON values.

    Raises:
        FlagError: the file is not that of a run (a checkpoint has a `config.json` too), or has another format version.
    """
    path = folder / "config.json"
    try:
        content = read_object(path)
        flags: Any = content.get("flags")
        if not isinstance(flags, dict):  # before its format: a file without flags has none of ours
            raise ValueError(
                f"{str(folder)!r} holds no run ({path.name} has no flags); pass the folder of one agent and seed."
            )
        check_format(path, content)
    except ValueError as error:
        raise FlagError(str(error)) from error
    return dict(flags)


def read_config(folder: Path, kind: type[Any]) -> Any:
    """Returns the flags in a folder's `config.json` as a dataclass of type `kind`.

    Raises:
        FlagError: the folder holds no run, or a run of another format version.
    """
    if not (folder / "config.json").is_file():
        raise FlagError(f"{str(folder)!r} holds no run (no config.json); pass the folder of one agent and seed.")
    flags = read_flags(folder)
    for f in dataclasses.fields(AgentFlags):
        if dataclasses.is_dataclass(f.default_factory):  # an agent's settings
            flags[f.name] = f.default_factory(**flags.get(f.name, {}))
    names = {f.name for f in dataclasses.fields(kind)}
    flags["out"] = None if flags.get("out") is None else Path(flags["out"])
    return kind(**{name: value for name, value in flags.items() if name in names})


def plain(config: Any) -> dict[str, Any]:
    """Returns a config as a dict of JSON values."""
    content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return content


def open_folder(config: Any, name: str, time: str) -> Path:
    """Returns the folder of a run: a new one, or with `resume` an existing one whose run has the same flags.

    Raises:
        FlagError: the folder is in use, or holds a run with other flags.
    """
    folder = Path(config.out) if config.out is not None else Path("runs") / f"{name}-{time}"
    if not (folder / "config.json").is_file():
        if config.resume:
            raise FlagError(f"--resume: {str(folder)!r} holds no run to resume; pass its folder as --out.")
        if folder.is_dir() and any(folder.iterdir()):
            raise FlagError(f"--out {str(folder)!r} is not empty; choose another folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlagError(f"--out {str(folder)!r} cannot be made: {error}") from error
        write_config(config, folder)
        return folder
    if not config.resume:
        raise FlagError(f"--out {str(folder)!r} holds a run; add --resume to continue it, or choose another folder.")
    saved = read_flags(folder)
    given = plain(config)
    ignored = {"resume", "out", "num_workers", "launcher", "device"}
    if changed := [key for key in given if key not in ignored and given[key] != saved.get(key, given[key])]:
        key = changed[0]
        raise FlagError(
            f"--resume: the run in {str(folder)!r} has {key} = {saved.get(key)!r}, the flags have {given[key]!r}; "
            "resume with the same flags."
        )
    return folder
