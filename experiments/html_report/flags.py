"""The flags of the runs of a page: what all have, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agents.files import JsonObject
from experiments.html_report.run import Run

Values = list[tuple[str, str]]  # a value, and the runs that have it, "" if all that have the flag


def flags_of(runs: Sequence[Run]) -> list[tuple[str, Values]]:
    """Returns each flag that is set in a run, with its values; settings of an agent are named as on the command line.

    Agent and seed are left out: a run is named by them.
    """
    of_runs = [
        (run.name, dict(_flat({name: value for name, value in run.flags.items() if name not in ("agent", "seed")})))
        for run in runs
    ]
    names = list(dict.fromkeys(name for _, flags in of_runs for name in flags))
    return [(name, _values(name, of_runs)) for name in names]


def _flat(flags: JsonObject, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in flags.items():
        flag = prefix + name.replace("_", "-")
        if isinstance(value, dict):
            yield from _flat(value, f"{flag}.")
        elif value is not None and value is not False and value != []:
            yield flag, " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _values(name: str, of_runs: Sequence[tuple[str, dict[str, str]]]) -> Values:
    """An own setting of an agent says nothing about the runs of others."""
    having: dict[str, list[str]] = {}
    for run, flags in of_runs:
        if name in flags or "." not in name:
            having.setdefault(flags.get(name, "not set"), []).append(run)
    if len(having) == 1:
        return [(value, "") for value in having]
    return [(value, "; ".join(runs)) for value, runs in having.items()]
