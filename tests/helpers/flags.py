"""Every flag of every command, and configs with odd values in some of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from experiments import command_line

REQUIRED = {
    "evaluate": ["--run", "r"],
    "sample": ["--run", "r"],
    "reward-model": ["--pairs", "p", "--model", "m", "--out", "o"],
}
COMMANDS = {
    name: get_args(kind)[0]
    for name, kind in zip(
        ("compare", "train", "evaluate", "sample", "lecture", "cost", "reward-model", "bench"),
        get_args(command_line.Command),
        strict=True,
    )
}
Flag = tuple[str, str, str, Any]  # command, flag, name of the field, its type


def flags(kind: type[Any], prefix: str = "--") -> Iterator[tuple[str, str, Any]]:
    """Flag, name and type of each field of a config, and of the agents' settings in it."""
    hints = get_type_hints(kind)
    for f in dataclasses.fields(kind):
        flag = prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[f.name]):
            yield from flags(hints[f.name], f"{flag}.")
        else:
            yield flag, f.name, hints[f.name]


FLAGS: list[Flag] = [(name, *flag) for name, kind in COMMANDS.items() for flag in flags(kind)]


def make(name: str, values: dict[str, Any]) -> Any:
    """The config of a command in which fields have these values; agents' settings as "ppo.gamma"."""
    kind, own, settings = COMMANDS[name], dict[str, Any](), dict[str, dict[str, Any]]()
    for field, value in values.items():
        holder, _, setting = field.partition(".")
        (settings.setdefault(holder, {}) if setting else own)[setting or holder] = value
    paths = {"run": Path("r"), "pairs": Path("p"), "model": "m", "out": Path("o")}
    fields = dataclasses.fields(kind)
    made = {f.name: f.default_factory(**settings[f.name]) for f in fields if f.name in settings}  # type: ignore[misc]
    return kind(**{f.name: paths[f.name] for f in fields if is_required(f)} | made | own)


def is_required(field: Any) -> bool:
    """Whether a field has no default."""
    return field.default is field.default_factory is dataclasses.MISSING
