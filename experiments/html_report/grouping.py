"""Which runs are seeds of one agent: those whose flags are the same, but for what does not change a result."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from agents.files import JsonObject
from experiments.agent_classes import AGENTS, display_name, settings_key, short_name
from experiments.changes import MAY_DIFFER
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.html_report.run import Run
from experiments.html_report.task import ARGUMENT_FLAGS, TASK_FLAGS

# what tells seeds apart, what is the same in all runs of a page, and how they are measured
LEFT_OUT = MAY_DIFFER | {"seed", "env_args", *TASK_FLAGS, *ARGUMENT_FLAGS}
LEFT_OUT |= {"num_evals", "eval_episodes", "optimum_completions", "max_eval_prompts"}
DEFAULTS = {f.name: f.default for f in dataclasses.fields(TrialConfig) if f.default is not dataclasses.MISSING}

Key = tuple[tuple[str, str], ...]  # flags with their values
Group = tuple[Key, Path | None]  # the folder where seeds of other folders are the same


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs by agent, each with the name of its agent and its runs by seed.

    Agents of the same name are told apart by the flags that differ; and by the folder, where runs with the same flags
    have the same seed.

    Raises:
        FlagError: a run is there twice.
    """
    folders = Counter(run.folder.resolve() for run in runs)
    if twice := [folder for folder, count in folders.items() if count > 1]:
        raise FlagError(f"a run must be named once, got {str(twice[0])!r} {folders[twice[0]]} times.")
    seeds = Counter((_key(run.flags), run.seed) for run in runs)
    repeated = {key for (key, _), count in seeds.items() if count > 1}
    groups: dict[Group, list[Run]] = {}
    for run in runs:
        key = _key(run.flags)
        groups.setdefault((key, _owner(run) if key in repeated else None), []).append(run)
    names = _names(list(groups))
    return {
        names[group]: [
            dataclasses.replace(run, agent=names[group]) for run in sorted(members, key=lambda run: run.seed)
        ]
        for group, members in groups.items()
    }


def _key(flags: JsonObject) -> Key:
    """The flags that make an agent, by name; its own settings as `ppo.clip_range`."""
    own, settings = settings_key(str(flags["agent"])), {settings_key(name) for name in AGENTS}
    flat: dict[str, object] = dict(DEFAULTS)
    for name, value in flags.items():
        if name == own and isinstance(value, dict):
            flat |= {f"{name}.{setting}": each for setting, each in value.items()}
        elif name not in settings:
            flat[name] = value
    return tuple(sorted((name, str(value)) for name, value in flat.items() if name not in LEFT_OUT))


def _owner(run: Run) -> Path:
    """The comparison that a run is part of, else the run's own folder."""
    folder = run.folder.resolve()
    in_comparison = (folder.parent.name, folder.name) == (short_name(str(run.flags["agent"])), f"seed-{run.seed}")
    return folder.parent.parent if in_comparison else folder


def _names(groups: Sequence[Group]) -> dict[Group, str]:
    """A name for each group: the agent's, with what tells it from others of the name behind it."""
    by_agent: dict[str, list[Group]] = {}
    for group in groups:
        by_agent.setdefault(display_name(dict(group[0])["agent"]), []).append(group)
    names = {}
    for agent, same in by_agent.items():
        flags = [dict(key) for key, _ in same]
        differing = [
            name for name in sorted({n for each in flags for n in each}) if len({each.get(name) for each in flags}) > 1
        ]
        suffixes = _suffixes({owner for _, owner in same if owner is not None})
        for group, each in zip(same, flags, strict=True):
            marks = [f"{name.replace('_', '-')} {each.get(name, 'unknown')}" for name in differing]
            marks += [suffixes[group[1]]] if group[1] is not None else []
            names[group] = agent + (f" ({', '.join(marks)})" if marks else "")
    return names


def _suffixes(folders: set[Path]) -> Mapping[Path, str]:
    """The shortest ends of paths that tell them apart, of as many parts each."""
    candidates = ({folder: str(Path(*folder.parts[-count:])) for folder in folders} for count in itertools.count(1))
    return next(ends for ends in candidates if len(set(ends.values())) == len(folders))
