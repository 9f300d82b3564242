"""`metrics.jsonl` of a trial: a row an update. It is only appended to, or replaced whole when a trial resumes.

A checkpoint's manifest has size and checksum of the file up to its update. When a trial resumes, rows after it are
dropped, since their updates are repeated. If rows before it are missing, they stay missing: a gap is reported and never
filled.
"""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

from agents import files
from agents.files import JsonObject

METRICS_FILE = "metrics.jsonl"
Row = JsonObject  # by name of the metric: a number, or None where it is not finite


class Kept(NamedTuple):
    """What a trial keeps of `metrics.jsonl` when it starts: the file's content, and its rows."""

    content: bytes
    rows: list[Row]


def kept_metrics(folder: Path, saved: JsonObject | None) -> Kept:
    """Returns what a trial keeps of its metrics.

    Args:
        folder: the trial's folder.
        saved: the manifest of the checkpoint that it resumes from; None for a new agent, which keeps nothing.

    Raises:
        DamagedFile: the file is as long as at the checkpoint, but not as it was written; or shorter, though no row is
            missing.
    """
    if saved is None:
        return Kept(b"", [])
    path = folder / METRICS_FILE
    cure = "Restore it from a copy; or remove it and resume: the trial then continues without these rows."
    try:
        content = files.read_bytes(path) if path.exists() else b""
    except OSError as error:
        raise files.DamagedFile(f"{path} cannot be read: {error.strerror}. {cure}") from error
    files.check_types(folder / "manifest of the checkpoint", saved["metrics"], {"size": int, "sha256": str})
    size = saved["metrics"]["size"]
    shorter = len(content) < size
    content = content[: content.rfind(b"\n") + 1] if shorter else content[:size]  # without a row that was cut off
    changed = files.DamagedFile(f"{path} was changed after it was written. {cure}")
    if not shorter and hashlib.sha256(content).hexdigest() != saved["metrics"]["sha256"]:
        raise changed
    try:
        rows = files.parse_rows(path, content)
        for number, row in enumerate(rows, start=1):
            check_row(path, number, row)
    except files.DamagedFile as error:
        raise files.DamagedFile(f"{error} {cure}") from error
    if shorter and not find_gaps(rows, saved["num_updates"]):  # what is missing is no whole row
        raise changed
    return Kept(content, rows)


def check_row(path: Path, number: int, row: Row) -> None:
    """Raises a DamagedFile unless a row has its counts and holds numbers."""
    where = path.with_name(f"{path.name}:{number}")
    files.check_types(where, row, {"num_timesteps": int, "num_updates": int, "seconds": float})
    files.check_types(where, row, dict.fromkeys(row, float | None))


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a trial's metrics, without a last row that was cut off.

    Raises:
        DamagedFile: another row is not what a trial writes.
    """
    rows = files.read_rows(folder / METRICS_FILE)
    for number, row in enumerate(rows, start=1):
        check_row(folder / METRICS_FILE, number, row)
    return rows


def find_gaps(rows: list[Row], num_updates: int) -> list[list[int]]:
    """The updates between 0 and `num_updates` that have no row, as pairs of the first and the last of each gap."""
    known = [-1, *sorted({row["num_updates"] for row in rows if row["num_updates"] <= num_updates}), num_updates + 1]
    return [[before + 1, after - 1] for before, after in itertools.pairwise(known) if after > before + 1]


def describe_gaps(gaps: list[list[int]]) -> str:
    """A sentence about updates without rows."""
    return f"{METRICS_FILE} lacks the rows of updates {' and '.join(f'{first} to {last}' for first, last in gaps)}"
