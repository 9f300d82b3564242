"""`config.json` of a run: its flags, fingerprints of what they name, and the versions that it began with.

It is written once, when the run begins.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from agents import FORMAT_VERSION, check_format, files
from agents.files import JsonObject
from experiments.agent_classes import AGENTS, Settings, names_user_code, settings_key, short_name
from experiments.config import SHARED_FLAGS, TrainFlags, TrialConfig
from experiments.errors import FlagError
from experiments.fingerprints import sources, surroundings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG = "config.json"


def write_config(config: DataclassInstance, folder: Path, name: str = CONFIG) -> None:
    """Writes `config.json`: the flags, the fingerprints of what they name, versions, threads and device."""
    content = {
        "format_version": FORMAT_VERSION,
        "flags": plain(config),
        "sources": sources(config),
        **surroundings(getattr(config, "device", "cpu")),
    }
    files.write_json(folder / name, content, sync=True)


def read_saved_config(folder: Path, name: str = CONFIG) -> JsonObject:
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


def read_config(folder: Path) -> TrainFlags:
    """Returns the flags in the `config.json` of a trial.

    They are a `TrialConfig` where the agent is one of this project's. An agent of the user's is not imported, since
    only the folder names it; then they are the flags that all agents share, without the agent.

    Raises:
        FlagError: the folder holds no run, or a run of another format version or with other flags than this version's.
        DamagedFile: the file was cut off or changed.
    """
    if not (folder / CONFIG).is_file():
        raise FlagError(f"{str(folder)!r} holds no run (no config.json); pass the folder of one agent and seed.")
    path = folder / CONFIG
    flags = read_saved_config(folder)["flags"]
    agent = flags.get("agent", TrialConfig.agent)
    keys = {settings_key(name) for name in AGENTS}  # of all: `train` of textenv 0.3 saved the settings of each
    own = settings_key(agent) if isinstance(agent, str) else ""
    settings = {name: value for name, value in flags.items() if name in keys | {own} and name not in SHARED_FLAGS}
    values = {name: value for name, value in flags.items() if name not in settings}
    if "agents" in flags:
        raise FlagError(f"{str(folder)!r} holds a comparison; pass the folder of one agent and seed in it.")
    if unknown := values.keys() - set(SHARED_FLAGS):
        raise FlagError(
            f"{path} has the flag {min(unknown)}, which `train` of this version does not have; pass the folder of one "
            "agent and seed, written by this version."
        )
    files.check_types(path, settings, dict.fromkeys(settings, dict))
    if isinstance(out := values.get("out"), str):
        values["out"] = Path(out)
    try:
        if isinstance(agent, str) and names_user_code(agent):
            shared = {f.name for f in dataclasses.fields(TrainFlags)}
            return TrainFlags(**{name: value for name, value in values.items() if name in shared})
        return TrialConfig(**values, settings=Settings({own: settings[own]} if own in settings else {}))
    except FlagError as error:
        raise FlagError(f"{path}: {error}") from error


def command_of(folder: Path) -> str | None:
    """The command that wrote a folder's `config.json`, of those that train agents on tasks; None for another one.

    Raises:
        FlagError, DamagedFile: see `read_saved_config`.
    """
    flags = read_saved_config(folder)["flags"]
    for command, own in (("optimum", "tasks"), ("compare", "agents"), ("train", "agent")):
        if own in flags:
            return command
    return None


def trial_folders(folder: Path) -> list[Path]:
    """Returns the folders of the trials in a folder of `train`, itself, or `compare`, those that have begun.

    They are in the order of the flags.

    Raises:
        FlagError, DamagedFile: see `read_saved_config`.
    """
    flags = read_saved_config(folder)["flags"]
    if "agents" not in flags:
        return [folder]
    files.check_types(folder / CONFIG, flags, {"agents": list, "seeds": list})
    places = [folder / short_name(str(agent)) / f"seed-{seed}" for agent in flags["agents"] for seed in flags["seeds"]]
    return [place for place in places if (place / CONFIG).is_file()]


def plain(config: DataclassInstance) -> JsonObject:
    """Returns a config as a dict of JSON values; the settings of each agent are beside the flags, by their key."""
    content: JsonObject = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    settings: JsonObject = content.pop("settings", {})
    return content | settings
