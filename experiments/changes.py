"""What has changed since a run began: its flags, what they name, and what it runs on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from agents.files import JsonObject
from experiments.agent_classes import AGENTS, settings_key, settings_of, trained_agents
from experiments.fingerprints import sources, surroundings
from experiments.run_folder import plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# flags that may differ: of what is printed or kept, of how the command runs, and of what is done about failing rewards
MAY_DIFFER = {
    *("log_completions", "samples_per_eval", "wandb_project", "keep_checkpoints", "checkpoint_seconds"),
    *("resume", "out", "take_over", "accept_changes", "num_workers", "launcher", "device", "trust_remote_code"),
    *("on_reward_error", "reward_tries", "reward_wait"),
}

# flags of the saved policy, and of the baselines that its evaluations are compared with: what is resumed has them
# whatever the command line gives
FIXED = {"agent", "temperature", "dtype", "separate_critic", "lora_rank"}
FIXED |= {"held_out", "eval_prompts", "optimum_completions", "max_eval_prompts"}


def changes_that_mix(config: DataclassInstance, saved: JsonObject) -> list[str]:
    """Returns a sentence for each flag, file, model and function that is another one than when the run began.

    Args:
        config: the flags of this command.
        saved: the content of the run's `config.json`.
    """
    before, now = _flags(config, saved)
    return [*_differences(before, now), *_changed_sources(saved["sources"], sources(config))]


def changes_without_effect(config: DataclassInstance, saved: JsonObject) -> list[str]:
    """Returns a sentence for each flag of policy and baselines that is another one than when the run began."""
    before, now = ({name: flags.get(name) for name in FIXED} for flags in _flags(config, saved))
    return list(_differences(before, now))


def changes_of_surroundings(config: DataclassInstance, saved: Mapping[str, object]) -> list[str]:
    """Returns a sentence for each package, number of threads and device that is another one than before."""
    now = surroundings(getattr(config, "device", "cpu"))
    return list(_differences({name: saved[name] for name in now}, now))


def _flags(config: DataclassInstance, saved: JsonObject) -> tuple[JsonObject, JsonObject]:
    """The flags that must not differ, when the run began and now."""
    defaults = {f.name: f.default for f in dataclasses.fields(config) if f.default is not dataclasses.MISSING}
    before = {name: value for name, value in saved["flags"].items() if name not in MAY_DIFFER}
    now = {name: value for name, value in plain(config).items() if name not in MAY_DIFFER}
    missing = {name: defaults[name] for name in now if name not in before and name in defaults}
    names = {settings_key(name): name for name in [*AGENTS, *trained_agents(config)]}
    unused = names.keys() - (before.keys() & now.keys())  # of an agent that only one of the two trains, if any
    before, now = ({name: value for name, value in flags.items() if name not in unused} for flags in (before, now))
    for key in names.keys() & before.keys():  # a setting that did not exist when the run began had its default
        before[key] = dataclasses.asdict(settings_of(names[key])()) | before[key]
    return missing | before, now


def _differences(before: Mapping[str, object], now: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name} was {old!r} and is {new!r}."


def _changed_sources(before: Mapping[str, object], now: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"{name} is gone."
        elif name not in before:
            yield f"{name} is new."
        elif before[name] != now[name] and None not in (before[name], now[name]):  # None: unknown
            yield f"{name} has changed."
