"""`summary.json` of a trial, which exists once it has finished, and `baselines.json` of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from agents import files
from agents.files import JsonObject
from experiments.checkpoints import newest_checkpoint
from experiments.evaluation import BASELINE_NAMES
from experiments.metrics_file import METRICS_FILE
from textenv.data import printable

SUMMARY = "summary.json"
SUMMARY_TYPES = {
    "agent": str,
    "seed": int,
    "objective": float | None,
    "score": float | None,
    "kl": float | None,
    "normalized_objective": float | None,
    "tokens_to_90": float | None,
    "baselines": dict,
    "num_timesteps": int,
    "num_updates": int,
    "seconds": float,
    "tokens_per_second": float,
    "gaps": list,
    "completions": list,
    "metrics": dict,
}
# None where an earlier version did not write them
ADDED = {"normalized_objective_stderr": float | None, "held_out": dict | None, "cpu_seconds": float | None}
BASELINE_TYPES = {**dict.fromkeys(BASELINE_NAMES, float | None), "reference": float, "reference_score": float}
ADDED_BASELINES = {"held_out": dict | None, "best_of_n": dict | None, "trained_on": float | None}


def write_summary(folder: Path, summary: JsonObject) -> None:
    """Writes the summary of a trial, with size and checksum of its metrics."""
    files.write_json(folder / SUMMARY, summary | {"metrics": files.describe(folder / METRICS_FILE)}, sync=True)


def read_summary(folder: Path) -> JsonObject | None:
    """Returns the summary of a trial that has finished.

    Returns:
        None if it has not: there is no summary, or the newest checkpoint that is whole or the metrics are not those of
        the summary. Such a trial is resumed.

    Raises:
        DamagedFile: the summary was cut off or changed; or see `newest_checkpoint`.
    """
    path = folder / SUMMARY
    if not path.exists():
        return None
    summary = checked_summary(path)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        print(printable(f"{folder}: the trial has finished, and its checkpoint was removed."), file=sys.stderr)
    elif checkpoint.manifest["num_updates"] != summary["num_updates"] or not _same(
        folder / METRICS_FILE, summary["metrics"]
    ):
        return None
    del summary["metrics"]
    return summary


def checked_summary(path: Path) -> JsonObject:
    """Returns the content of a `summary.json`, which need not be that of the newest checkpoint.

    Raises:
        DamagedFile: it was cut off or changed.
    """
    try:
        summary: JsonObject = {**dict.fromkeys(ADDED), **files.read_json(path)}
        files.check_types(path, summary, {**SUMMARY_TYPES, **ADDED})
        summary["baselines"] = checked_baselines(path, summary["baselines"])
        for row in summary["completions"]:
            files.check_types(path, {"completions": row}, {"completions": dict})
            files.check_types(path, row, {"completion": str, "score": float | None})
    except files.DamagedFile as error:
        cure = "Remove it, and resume: the trial is evaluated again."
        raise files.DamagedFile(f"{error} {cure}") from error
    return summary


def _same(path: Path, described: JsonObject) -> bool:
    return path.exists() and bool(files.describe(path) == described)


def read_baselines(path: Path) -> JsonObject:
    """Reads `baselines.json`.

    Raises:
        DamagedFile: it was cut off or changed.
    """
    try:
        return checked_baselines(path, files.read_json(path))
    except files.DamagedFile as error:
        raise files.DamagedFile(f"{error} Remove it, and resume: they are measured again.") from error


def checked_baselines(path: Path, baselines: JsonObject) -> JsonObject:
    """Returns baselines, None for those that an earlier version did not have.

    Raises:
        DamagedFile: a baseline is missing, or has another type than its own.
    """
    types = {**BASELINE_TYPES, **ADDED_BASELINES}
    baselines = {**dict.fromkeys(types), **baselines}
    files.check_types(path, baselines, types)
    if baselines["best_of_n"] is not None:
        files.check_types(path, baselines["best_of_n"], {"n": int, "objective": float, "score": float, "kl": float})
    if baselines["held_out"] is not None:
        baselines["held_out"] = checked_baselines(path, baselines["held_out"])
    return baselines
