"""`summary.json` of a trial, which exists once it has finished, and `baselines.json` of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from agents import files
from agents.files import JsonObject
from experiments.checkpoints import newest_checkpoint
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
BASELINE_TYPES = {
    "reference": float,
    "reference_score": float,
    "reference_gold_score": float | None,
    "optimum": float | None,
}


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
    try:
        summary = files.read_json(path)
        files.check_types(path, summary, SUMMARY_TYPES)
        check_baselines(path, summary["baselines"])
        for row in summary["completions"]:
            files.check_types(path, {"completions": row}, {"completions": dict})
            files.check_types(path, row, {"completion": str, "score": float | None})
    except files.DamagedFile as error:
        cure = "Remove it, and resume: the trial is evaluated again."
        raise files.DamagedFile(f"{error} {cure}") from error
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        print(printable(f"{folder}: the trial has finished, and its checkpoint was removed."), file=sys.stderr)
    elif checkpoint.manifest["num_updates"] != summary["num_updates"] or not _same(
        folder / METRICS_FILE, summary["metrics"]
    ):
        return None
    del summary["metrics"]
    return summary


def _same(path: Path, described: JsonObject) -> bool:
    return path.exists() and bool(files.describe(path) == described)


def read_baselines(path: Path) -> dict[str, float | None]:
    """Reads `baselines.json`.

    Raises:
        DamagedFile: it was cut off or changed.
    """
    try:
        baselines = files.read_json(path)
        check_baselines(path, baselines)
    except files.DamagedFile as error:
        raise files.DamagedFile(f"{error} Remove it, and resume: they are measured again.") from error
    return baselines


def check_baselines(path: Path, baselines: JsonObject) -> None:
    """Raises a DamagedFile unless baselines have their names and are numbers."""
    files.check_types(path, baselines, BASELINE_TYPES)
