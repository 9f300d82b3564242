"""Every flag of every command, and configs with odd values in some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import tyro

from experiments import command_line
from experiments.agent_classes import AGENTS, Settings, settings_key, settings_of

REQUIRED = {
    "evaluate": ["--run", "r"],
    "sample": ["--run", "r"],
    "report": ["r"],
    "rescore": ["r", "--reward", "vader"],
    "reward-model": ["--pairs", "p", "--model", "m", "--out", "o"],
    "verify": ["ppo"],
}
COMMANDS = {
    name: get_args(kind)[0]
    for name, kind in zip(
        (
            "compare",
            "train",
            "evaluate",
            "sample",
            "play",
            "report",
            "rescore",
            "lecture",
            "optimum",
            "cost",
            "check-reward",
            "reward-model",
            "bench",
            "verify",
        ),
        get_args(command_line.Command),
        strict=True,
    )
}
Flag = tuple[str, str, str, Any]  # command, flag, name of the field, its type


KEYS = {settings_key(name): name for name in AGENTS}


def flags(kind: type[Any], prefix: str = "--") -> Iterator[tuple[str, str, Any]]:
    """Flag, name and type of each field of a config, and of the settings of every agent that it may train."""
    hints, annotated = get_type_hints(kind), get_type_hints(kind, include_extras=True)
    for f in dataclasses.fields(kind):
        if tyro.conf.Positional in getattr(annotated[f.name], "__metadata__", ()):
            continue
        if hints[f.name] is Settings:
            for key, name in KEYS.items():
                yield from flags(settings_of(name), f"--{key.replace('_', '-')}.")
        else:
            yield prefix + f.name.replace("_", "-"), f.name, hints[f.name]


FLAGS: list[Flag] = [(name, *flag) for name, kind in COMMANDS.items() for flag in flags(kind)]


def make(name: str, values: dict[str, Any]) -> Any:
    """The config of a command in which fields have these values; settings of the agents it trains as "ppo.gamma"."""
    kind, own, settings = COMMANDS[name], dict[str, Any](), dict[str, dict[str, Any]]()
    for field, value in values.items():
        holder, _, setting = field.partition(".")
        (settings.setdefault(holder, {}) if setting else own)[setting or holder] = value
    paths = {
        "run": Path("r"),
        "pairs": Path("p"),
        "model": "m",
        "out": Path("o"),
        "losses": ["ppo"],
        "runs": [Path("r")],
        "reward": ["vader"],
    }
    fields = dataclasses.fields(kind)
    made: dict[str, Any] = {"settings": settings} if settings else {}
    agents = [KEYS[key] for key in settings]
    if agents:
        made |= {"agent": agents[0]} if name == "train" else {"agents": agents}
    return kind(**{f.name: paths[f.name] for f in fields if is_required(f)} | made | own)


def is_required(field: Any) -> bool:
    """Whether a field has no default."""
    return field.default is field.default_factory is dataclasses.MISSING
