"""Fingerprints: what the flags of a run name (files, models, functions), and what it runs on, for comparison at resume.

Flags are names. The same flags train something else once the prompt file, the weights of a model or the source of a
reward function have changed; so a run keeps the SHA-256 of each file, and the commit of a model of the hub.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import gymnasium as gym
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

import textenv
from agents import files
from agents.files import JsonObject
from agents.training import find_optimizer
from experiments.agent_classes import names_user_code, trained_agents
from experiments.env_flags import REWARDS
from experiments.errors import FlagError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PACKAGES = (
    *("gymnasium", "torch", "transformers", "tokenizers", "numpy", "scipy", "stable-baselines3", "sb3-contrib"),
    *("peft", "accelerate", "vaderSentiment", "trl"),
)


def sources(config: DataclassInstance) -> dict[str, str | None]:
    """Returns the fingerprint of everything that the flags of a command name, by its flag and name.

    Where it is unknown (a function that is not written in Python, a model that is not in the hub's cache) it is None.
    """
    return dict(_sources(config))


def surroundings(device: str = "cpu") -> JsonObject:
    """Returns what else the numbers of a run depend on: the versions of packages, threads, the device."""
    versions = {"textenv": textenv.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # an optional one
            continue
    return {"versions": versions, "threads": torch.get_num_threads(), "device": f"{device} ({_device_name(device)})"}


def _device_name(device: str) -> str:
    """The name of a card, where torch knows one; else the machine's architecture."""
    get_name = getattr(torch.get_device_module(device), "get_device_name", None)
    return platform.machine() if get_name is None else str(get_name(device))


def _sources(config: DataclassInstance) -> Iterator[tuple[str, str | None]]:
    if (env := getattr(config, "env", None)) is not None:
        yield from _env(env)
    for name in ("prompts", "eval_prompts", "pairs"):
        if (path := getattr(config, name, None)) is not None:
            yield from _files(name, Path(path), "**/*")
    for path in getattr(config, "eval_pairs", None) or []:
        yield from _files("eval_pairs", path, "**/*")
    if (model := getattr(config, "model", None)) is not None:
        yield from _model("model", str(model))
    for agent in filter(names_user_code, trained_agents(config)):
        yield f"agent {agent}", _source_of(*agent.rsplit(":", 1))
    for key, settings in (getattr(config, "settings", None) or {}).items():
        if ":" in (optimizer := settings.get("optimizer", "")):
            try:
                find_optimizer(optimizer)
            except ValueError as error:
                raise FlagError(f"--{key.replace('_', '-')}.{error}") from error
            yield f"{key}.optimizer {optimizer}", _source_of(*optimizer.rsplit(":", 1))
    rewards = getattr(config, "reward", None) or []
    gold = getattr(config, "gold_reward", None)
    for flag, name in [*(("reward", each) for each in rewards), *([("gold_reward", gold)] if gold else [])]:
        module, _, function = name.rpartition(":")
        if module:
            yield f"{flag} {name}", _source_of(module, function)
        elif name not in REWARDS:
            yield from _model(flag, name.partition("#")[0])


def _env(name: str) -> Iterator[tuple[str, str | None]]:
    """The registration of an environment, and the source of the function that makes its task."""
    module, _, registered = name.rpartition(":")
    if module:
        yield f"env {name}: {module}", _source_of(module, "")
    spec = gym.spec(registered)
    entries = {"entry_point": spec.entry_point, "vector_entry_point": spec.vector_entry_point, "kwargs": spec.kwargs}
    yield f"env {name}", json.dumps(entries, default=_name_of, sort_keys=True)
    task = spec.kwargs.get("task", spec.entry_point)
    if isinstance(task, str) and ":" in task:
        yield f"env {name}: {task}", _source_of(*task.split(":", 1))
    elif callable(task):
        yield f"env {name}: {_name_of(task)}", _source_of(task.__module__, task.__qualname__)


def _name_of(value: object) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def _model(flag: str, name: str) -> Iterator[tuple[str, str | None]]:
    """The files of a model's folder and of the model that its adapter belongs to; the commit of a model of the hub."""
    folder = Path(name)
    if not folder.is_dir():
        yield f"{flag} {name}", _commit(name)
        return
    yield from _files(flag, folder)
    try:
        base = files.read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    except files.DamagedFile:  # no adapter
        return
    if isinstance(base, str) and base != name:
        yield from _model(flag, base)


def _files(flag: str, path: Path, pattern: str = "*") -> Iterator[tuple[str, str | None]]:
    """The SHA-256 of a file, or of each file in a folder that the pattern fits."""
    for each in sorted(path.glob(pattern)) if path.is_dir() else [path]:
        if each.is_file():
            yield f"{flag} {each}", files.describe(each)["sha256"]


def _commit(name: str) -> str | None:
    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # no name of the hub
        return None
    return Path(cached).parent.name if isinstance(cached, str) else None


def _source_of(module: str, name: str) -> str | None:
    """The SHA-256 of the files of a module, which was imported already, and of the function that it names.

    They differ where the function is imported from elsewhere, or is an instance of a class of elsewhere.
    """
    imported = importlib.import_module(module)
    value: object = imported
    for part in name.split("."):
        value = getattr(value, part, None)
    value = inspect.unwrap(value) if callable(value) else value
    try:
        own = inspect.getsourcefile(value if inspect.isroutine(value) or inspect.isclass(value) else type(value))
    except TypeError:  # built in
        own = None
    places = dict.fromkeys(place for place in (getattr(imported, "__file__", None), own) if place)
    if not places:
        return None
    content = b"".join(Path(place).read_bytes() for place in places if Path(place).is_file())
    return hashlib.sha256(content).hexdigest()
