"""Reads the folders of runs, finished or not. Files that only a page needs may be damaged: the page tells so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from agents import files
from agents.files import DamagedFile, JsonObject
from experiments.agent_classes import display_name
from experiments.checkpoints import BASELINES
from experiments.errors import FlagError
from experiments.failure import read_failure
from experiments.frontier import read_frontier
from experiments.html_report.grouping import group_runs
from experiments.html_report.run import Run
from experiments.html_report.sampled import read_steps
from experiments.html_report.task import check_one_task
from experiments.metrics_file import METRICS_FILE, Row, find_gaps, read_metrics
from experiments.opening import INITIAL
from experiments.run_folder import CONFIG, command_of, read_saved_config, trial_folders
from experiments.share import normalized_objective, normalized_objective_stderr, tokens_to_reach
from experiments.state_tree import read_tree
from experiments.summary import SUMMARY, checked_summary, read_baselines
from textenv.data import printable

Kept = TypeVar("Kept")


class NotEvaluated(FlagError):
    """A folder holds runs, and none of them was evaluated yet."""


@dataclass
class Runs:
    """The runs of a page.

    Attributes:
        trials: by agent, one run per seed.
        baselines: see `Evaluator.baselines`.
        untrained: measured values of policies that are not trained, by name.
        frontier: see `frontier`; None where it is not known.
        notes: sentences about what is missing.
    """

    trials: dict[str, list[Run]]
    baselines: JsonObject
    untrained: dict[str, JsonObject]
    frontier: JsonObject | None
    notes: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[Run]:
        """Every run."""
        return [run for runs in self.trials.values() for run in runs]

    @property
    def summaries(self) -> dict[str, list[JsonObject]]:
        """As the text report takes them."""
        return {name: [run.summary for run in runs] for name, runs in self.trials.items()}

    @property
    def flags(self) -> JsonObject:
        """Those of the first run."""
        return self.all[0].flags


def read_runs(folders: Sequence[Path]) -> Runs:
    """Reads the runs of folders of `train` and `compare`.

    Raises:
        FlagError: a folder holds no run that was evaluated; the runs have different tasks; a run is named twice.
        DamagedFile: flags, metrics, summary or baselines of a run were cut off or changed.
    """
    found: list[tuple[Path, list[Run]]] = []
    notes: list[str] = []
    for folder in folders:
        found.append((folder, _runs_of(folder, notes)))
    everything = [run for _, runs in found for run in runs]
    check_one_task([run.flags for run in everything])
    counts = {run.summary["baselines"].get("num_prompts") for run in everything}
    if len(counts) > 1:
        got = " and ".join("all" if count is None else f"{count:.0f}" for count in counts)
        raise FlagError(f"a report is of runs that are measured on the same prompts, got runs with {got} of them.")
    first, first_folder = everything[0], found[0][0]
    return Runs(
        group_runs(everything),
        baselines=first.summary["baselines"],
        untrained=_untrained(first_folder, first.summary["baselines"], notes),
        frontier=_optional(lambda: read_frontier(_initial(first_folder, first.folder)), notes),
        notes=notes,
    )


def _runs_of(folder: Path, notes: list[str]) -> list[Run]:
    """The runs in the folder of `train` or `compare`, in the order of its flags."""
    if not (folder / CONFIG).is_file():
        missing = f"(no {CONFIG})" if folder.is_dir() else "(no such folder)"
        raise FlagError(f"{str(folder)!r} holds no run {missing}; {_what_to_pass(folder)}.")
    if (command := command_of(folder)) not in ("train", "compare"):
        whose = "is of another command" if command is None else f"is of `{command}`"
        raise FlagError(f"{str(folder)!r} {whose}, which a report does not show; {_what_to_pass(folder)}.")
    found = [_read_run(place, _initial(folder, place), notes) for place in trial_folders(folder)]
    left_out = [each for each in found if isinstance(each, str)]
    if runs := [each for each in found if isinstance(each, Run)]:
        notes += left_out
        return runs
    if any("not finite" in text for text in left_out):
        raise FlagError(f"{str(folder)!r} holds no run that a report can show. {' '.join(left_out)}")
    raise NotEvaluated(f"{str(folder)!r} holds no run that was evaluated yet.")


def _what_to_pass(folder: Path) -> str:
    """Where the runs are, if there are any inside of a folder that is none itself."""
    inside = sorted(path.parent for path in folder.rglob(METRICS_FILE))
    if not inside:
        return "pass a folder that `train` or `compare` wrote"
    return f"pass folders of runs in it: {', '.join(map(str, inside[:3]))}{', ...' if inside[3:] else ''}"


def _initial(folder: Path, run: Path) -> Path:
    """The folder of the baselines: of the run, or of the comparison that it belongs to."""
    candidates = (run / INITIAL, folder / INITIAL, run.parent.parent / INITIAL)
    return next((each for each in candidates if (each / BASELINES).is_file()), run / INITIAL)


def _read_run(folder: Path, initial: Path, notes: list[str]) -> Run | str:
    """A run, or a sentence why it is left out."""
    flags = read_saved_config(folder)["flags"]
    files.check_types(folder / CONFIG, flags, {"agent": str, "seed": int})
    name = f"{display_name(flags['agent'])}, seed {flags['seed']}"
    rows = read_metrics(folder)
    if not any("eval/objective" in row for row in rows):
        return f"{name} is left out: it was not evaluated yet."
    path = folder / SUMMARY
    summary = checked_summary(path) if path.exists() else None
    if summary is not None and summary["num_updates"] < rows[-1]["num_updates"]:  # it was resumed for more tokens
        summary = None
    finished, failure = summary is not None, None
    if summary is None:
        if not (initial / BASELINES).is_file():
            raise DamagedFile(f"{initial / BASELINES} is missing: the share of the way is not known without it.")
        summary = _summary_so_far(flags, rows, read_baselines(initial / BASELINES))
        failure = _optional(lambda: read_failure(folder), notes)
        why = "has not finished" if failure is None else f"{failure.event}: {failure.text}"
        notes.append(f"{name} {why}{'' if why.endswith('.') else '.'} Its numbers are of its last evaluation.")
    summary["gaps"] = find_gaps(rows, summary["num_updates"])
    for each in [summary, *([summary["held_out"]] if summary["held_out"] else [])]:
        files.check_types(path, each, {"objective": float | None, "score": float | None, "kl": float | None})
        if None in (each["objective"], each["score"], each["kl"]):
            return f"{name} is left out: what was measured of it is not finite."
    steps, damaged = read_steps(folder)
    notes += [f"{name}: {text}" for text in damaged]
    if summary["gaps"]:
        notes.append(f"{name}: rows of {METRICS_FILE} were lost; the curves are interrupted there.")
    tree = _optional(lambda: read_tree(folder), notes) if finished else None
    return Run(
        folder, display_name(flags["agent"]), flags["seed"], flags, rows, summary, finished, steps, tree, failure
    )


def _summary_so_far(flags: JsonObject, rows: list[Row], baselines: JsonObject) -> JsonObject:
    """The numbers of `summary.json` from the last evaluation."""
    last, end = [row for row in rows if "eval/objective" in row][-1], rows[-1]

    def measured(prefix: str, of: JsonObject) -> JsonObject:
        numbers = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
        share = None if numbers["objective"] is None else normalized_objective(numbers["objective"], of)
        stderr = normalized_objective_stderr(share, numbers.get("objective_stderr"), of)
        return {**numbers, "normalized_objective": share, "normalized_objective_stderr": stderr}

    others = baselines.get("held_out")
    return {
        **{"agent": flags["agent"], "seed": flags["seed"], "baselines": baselines, "completions": []},
        **measured("eval/", baselines),
        "held_out": measured("held_out/", others) if others and "held_out/objective" in last else None,
        "tokens_to_90": tokens_to_reach(0.9, rows, baselines),
        "num_timesteps": end["num_timesteps"],
        "num_updates": end["num_updates"],
        "seconds": end["seconds"],
        "tokens_per_second": end["num_timesteps"] / max(end["seconds"], 1e-9),
    }


def _untrained(folder: Path, baselines: JsonObject, notes: list[str]) -> dict[str, JsonObject]:
    """What a comparison has measured of other policies; of a run, best of n where it is among the baselines."""
    try:
        content = files.read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    except DamagedFile as error:
        notes.append(printable(error))
        content = {}
    if isinstance(measured := content.get("untrained"), dict):
        for name, numbers in measured.items():
            files.check_types(folder / SUMMARY, {name: numbers}, {name: dict})
            for each in [numbers, *([numbers["held_out"]] if numbers.get("held_out") else [])]:
                files.check_types(folder / SUMMARY, each, {"objective": float, "score": float, "kl": float})
        return measured
    best = baselines.get("best_of_n")
    return {f"best of {best['n']}": best} if best else {}


def _optional(read: Callable[[], Kept | None], notes: list[str]) -> Kept | None:
    """What a file that only the page needs holds; None, with a note, if it is damaged."""
    try:
        return read()
    except DamagedFile as error:
        notes.append(printable(error))
        return None
