"""The type and the range of every flag, checked in one function before anything is loaded or written.

The annotations of a config's fields have the types. Numbers have a range in `FLAG_RANGES`, or for an agent's settings
in `agents.RANGES`. Limits are generous: they refuse what no run can make sense of, and what would fill the memory.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from agents import RANGES
from experiments.errors import FlagError
from textenv.arguments import SMALLEST_KL_COEF

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

INTEGERS = (0, 2**31 - 1)  # of an integer flag that is not in the tables
FLOATS = (-1e30, 1e30)
LONGEST_NAME = 255  # bytes of a file's name on the usual file systems
LONGEST_PATH = 4096

# By the name of the field, the same in every command.
FLAG_RANGES: dict[str, tuple[float, float]] = {
    "total_timesteps": (1, 10**15),
    "temperature": (1e-6, 1e6),
    "eval_episodes": (2, 1_000_000),
    "port": (0, 65_535),
    "num_evals": (1, 1_000_000),
    "samples_per_eval": (0, 10_000),
    "optimum_completions": (0, 10**9),
    "max_eval_prompts": (1, 10**9),
    "num_completions": (8, 10**6),
    "max_prompts": (1, 10**6),
    "lora_rank": (0, 65_536),
    "log_completions": (0, 10**9),
    "checkpoint_seconds": (0, 1e9),
    "keep_checkpoints": (1, 1000),
    "reward_tries": (1, 1000),
    "reward_wait": (0, 3600),
    "reward_weights": (-1e6, 1e6),
    "num_prompts": (1, 64),
    "sampled_batches": (2, 10**9),
    "missing_eos_penalty": (0, 1e6),
    "max_new_tokens": (1, 1_000_000),
    "kl_coef": (0, 1e6),
    "env_args": (-(2**63), 2**63 - 1),  # the task has ranges of its own
    "best_of_n": (1, 1_000_000),
    "num_workers": (0, 1024),
    "num": (1, 10**9),  # sampled in batches
    "top": (1, 1000),
    "epochs": (1, 10_000),
    "held_out": (0, 1),
    "devices": (1, 1_000_000),
    "prompt_tokens": (1, 1_000_000),
    "memory_gb": (1e-3, 1e9),
    "rounds": (1, 10_000),
    "completions": (1, 1_000_000),
    "completion_tokens": (1, 1_000_000),
    "threads": (1, 1024),
    "environment_seconds": (0.01, 86_400),
    "exact_tokens": (1, 64),
    "scaling_completions": (1, 1_000_000),
    "scaling_tokens": (1, 1_000_000),
}
SMALLEST = {"kl_coef": SMALLEST_KL_COEF, "optimum_completions": 2}  # of a number that may also be 0
PLURALS = {"seeds": "seed"}  # lists whose members have the range of another flag
TEXTS = ("prompt",)  # strings that are no name or path
REPEATED = ("reward", "reward_weights", "prompt", "check")  # lists that may have equal members
EMPTY = ("variants", "check", "expect", "peers")  # lists that may be empty


def check_flags(config: DataclassInstance, prefix: str = "--") -> None:
    """Checks every field of a command's config, or of an agent's settings.

    Raises:
        FlagError: a value of another type, out of range, not finite or empty; a name that no file can have; two equal
            members of a list. The message has the flag, the rule and the value.
    """
    hints, marked = get_type_hints(type(config)), get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value, flag = getattr(config, f.name), prefix + f.name.replace("_", "-")
        if tyro.conf.Positional in getattr(marked[f.name], "__metadata__", ()):  # it has no dashes
            flag = f.name.upper()
        if f.name != "settings":  # of agents, which have types and ranges of their own
            _check(flag, f.name, value, hints[f.name])


def flag_range(name: str) -> tuple[float, float] | None:
    """The range of a number by the name of its field, both ends included; None where only its type has one."""
    name = PLURALS.get(name, name)
    return FLAG_RANGES.get(name) or RANGES.get(name)


def name_flags(message: str, config: Any, key: str) -> str:
    """The message of an agent's error, which begins with a setting's name, with the name of its flag instead.

    Args:
        message: e.g. "n_episodes must be ...".
        config: the flags.
        key: the name of the agent's settings in `config.settings`.
    """
    name, _, rest = message.partition(" ")
    prefixes = {f.name: "--" for f in dataclasses.fields(config)}
    prefixes |= dict.fromkeys(config.settings[key], f"--{key}.")
    if name not in prefixes:
        return message
    return f"{prefixes[name]}{name} ".replace("_", "-") + rest


def _check(flag: str, name: str, value: object, annotation: object) -> None:
    """Checks one value against its type."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        _check_union(flag, name, value, members)
    elif origin is Literal:
        if not any(type(value) is type(member) and value == member for member in members):
            raise FlagError(f"{flag} must be one of {', '.join(map(str, members))}, got {value!r}.")
    elif origin in (list, tuple):
        _check_sequence(flag, name, value, members[0])
    elif origin is dict:
        if not isinstance(value, dict):
            raise FlagError(f"{flag} must be names with values, got {value!r}.")
        for key, each in value.items():
            _check_name(f"{flag}: a name", key)
            _check(f"{flag} {key}", "env_args", each, members[1])
    elif annotation is bool:
        if not isinstance(value, bool):
            raise FlagError(f"{flag} must be True or False, got {value!r}.")
    elif annotation in (int, float):
        _check_number(flag, name, value, annotation)
    elif name in TEXTS:
        if not isinstance(value, str):
            raise FlagError(f"{flag} must be a text, got {value!r}.")
    else:
        _check_name(flag, str(value) if annotation is Path and isinstance(value, Path) else value)


def _check_union(flag: str, name: str, value: object, members: Sequence[object]) -> None:
    """Checks a value against the member of a union that has its type, else against the first one."""
    if value is None and type(None) in members:
        return
    kinds = [kind for kind in members if kind is not type(None)]
    if all(get_origin(kind) is Literal for kind in kinds):  # one list of choices
        kinds = [Literal[tuple(choice for kind in kinds for choice in get_args(kind))]]
    same = [kind for kind in kinds if type(value) is kind]
    _check(flag, name, value, (same or kinds)[0])


def _check_sequence(flag: str, name: str, value: object, kind: object) -> None:
    if not isinstance(value, list | tuple):
        raise FlagError(f"{flag} must be a list, got {value!r}.")
    for each in value:
        _check(flag, name, each, kind)
    distinct = name in REPEATED or len(set(value)) == len(value)
    if not distinct or (not value and name not in EMPTY):
        rule = "one or more" if name in REPEATED else "one or more, each once"
        got = [str(each) if isinstance(each, Path) else each for each in value]
        raise FlagError(f"{flag} must be {rule}, got {got}{'' if distinct else ': they must differ'}.")


def _check_number(flag: str, name: str, value: object, kind: type) -> None:
    integer = kind is int
    if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
        raise FlagError(f"{flag} must be {'an integer' if integer else 'a number'}, got {value!r}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise FlagError(f"{flag} must be a finite number, got {value}.")
    low, high = flag_range(name) or (INTEGERS if integer else FLOATS)
    if value < low:
        raise FlagError(f"{flag} must {'not be negative' if low == 0 else f'be at least {low}'}, got {value}.")
    if 0 < value < (smallest := SMALLEST.get(name, 0)):
        raise FlagError(f"{flag} must be 0 or at least {smallest:g}, got {value}.")
    if value > high:
        raise FlagError(f"{flag} must be at most {high}, got {value}.")


def _check_name(flag: str, value: object) -> None:
    """Checks a string that names a file, a folder, a model or a function."""
    if not isinstance(value, str):
        raise FlagError(f"{flag} must be a text, got {value!r}.")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise FlagError(f"{flag} must be valid Unicode, got {value!r}.") from None
    if not value or "\0" in value:
        raise FlagError(f"{flag} must not {'be empty' if not value else 'have a NUL in it'}, got {value!r}.")
    if len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/")):
        raise FlagError(
            f"{flag} must have names of at most {LONGEST_NAME} bytes, and {LONGEST_PATH} in all, got "
            f"{value[:40]!r} ... of {len(encoded)}."
        )
