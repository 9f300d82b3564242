"""Settings that would be ignored are refused: what depends on another setting, and what an agent has no use for.

A setting made by `only_with` does something only where another one turns it on, as kl_in="loss" does for `kl_loss`. An
agent names the settings of all agents that it has no use for in `unused_settings`. The default and None ask for
nothing, and are never refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, field, fields
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
KEY = "only_with"  # of a field's metadata
Values = Mapping[str, object]  # of all settings, by name


class Switch(NamedTuple):
    """What turns a setting on."""

    what: str
    """The other setting, with the value that it must have."""
    is_on: Callable[[Values], bool]
    """Whether the settings have it."""


def only_with(what: str, is_on: Callable[[Values], bool], default: T) -> T:
    """Returns a field of an agent that does something only where another setting turns it on.

    Args:
        what: the other setting, for the error, e.g. "kl_in='loss'".
        is_on: whether all settings, by name, have it.
        default: of the field.
    """
    return field(default=default, metadata={KEY: Switch(what, is_on)})


def check_ignored(settings: DataclassInstance, unused: Mapping[str, str]) -> None:
    """Checks that no setting was given in vain; types and ranges were checked before.

    Args:
        settings: an agent.
        unused: the names of settings that it has no use for, each with the reason.

    Raises:
        ValueError: one was; the message says what to add.
    """
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    for f in fields(settings):
        value = values[f.name]
        if not _is_off(f, values, unused) or value is None or value == f.default:
            continue
        if (why := unused.get(f.name)) is not None:
            raise ValueError(f"{f.name} must be {f.default!r} for {type(settings).__name__}, got {value!r}: {why}.")
        what = f.metadata[KEY].what
        raise ValueError(
            f"{f.name} must be {f.default!r} without {what}, got {value!r}, which would be ignored; add {what}, or "
            f"leave {f.name} out."
        )


def merge_settings(
    kind: type[DataclassInstance], saved: Mapping[str, object], given: Mapping[str, object], unused: Mapping[str, str]
) -> dict[str, object]:
    """Returns the settings of a loaded agent: those saved, or given instead.

    A saved one that would be ignored beside those given is left out. So a setting can be turned off by itself, and the
    setting that depends on it has its default.

    Args:
        kind: the agent's class.
        saved: by name.
        given: by name.
        unused: see `check_ignored`.
    """
    merged = {**saved, **given}
    values = {f.name: merged.get(f.name, f.default) for f in fields(kind)}
    off = {f.name for f in fields(kind) if _is_off(f, values, unused)}
    return {name: value for name, value in merged.items() if name in given or name not in off}


def _is_off(f: Field[object], values: Values, unused: Mapping[str, str]) -> bool:
    """Whether a setting does nothing, beside the others."""
    switch: Switch | None = f.metadata.get(KEY)
    return f.name in unused or (switch is not None and not switch.is_on(values))
