"""Reads the folders of runs, finished or not. Files that only a page needs may be damaged: the page tells so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from agents import files
from agents.files import DamagedFile, JsonObject
from experiments.agent_classes import short_name
from experiments.checkpoints import BASELINES
from experiments.errors import FlagError
from experiments.frontier import read_frontier
from experiments.html_report.sampled import Step, read_steps
from experiments.metrics_file import METRICS_FILE, Row, find_gaps, read_metrics
from experiments.opening import INITIAL
from experiments.run_folder import CONFIG, read_saved_config, trial_folders
from experiments.share import normalized_objective, normalized_objective_stderr, tokens_to_reach
from experiments.state_tree import read_tree
from experiments.summary import SUMMARY, checked_summary, read_baselines
from textenv.data import printable

# flags that say what the task is
TASK_FLAGS = (
    *("env", "env_args", "model", "prompts", "eval_prompts", "held_out", "reward", "reward_weights", "gold_reward"),
    *("missing_eos_penalty", "max_new_tokens", "kl_coef"),
)


@dataclass
class Run:
    """What is known of one agent with one seed.

    Attributes:
        folder: its folder.
        agent: the name of the agent on the page.
        seed: its seed.
        flags: of its `config.json`.
        rows: of its `metrics.jsonl`.
        summary: its `summary.json`; of a run that has not finished, the same from its last evaluation.
        finished: whether it has.
        steps: its sampled completions, by update.
        tree: see `state_tree`; None where there is none.
    """

    folder: Path
    agent: str
    seed: int
    flags: JsonObject
    rows: list[Row]
    summary: JsonObject
    finished: bool
    steps: list[Step]
    tree: JsonObject | None = None

    @property
    def name(self) -> str:
        """Agent and seed."""
        return f"{self.agent}, seed {self.seed}"


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
        FlagError: a folder holds no run that was evaluated; the runs have different tasks.
        DamagedFile: flags, metrics, summary or baselines of a run were cut off or changed.
    """
    found: list[tuple[Path, list[Run]]] = []
    notes: list[str] = []
    for folder in folders:
        found.append((folder, _runs_of(folder, notes)))
    first = found[0][1][0]
    for _, runs in found:
        for name in TASK_FLAGS:
            if (theirs := runs[0].flags.get(name)) != (own := first.flags.get(name)):
                flag = f"--{name.replace('_', '-')}"
                raise FlagError(f"a report is of one task, got runs with {flag} {own!r} and {theirs!r}.")
    counts = Counter((run.agent, run.seed) for _, runs in found for run in runs)
    trials: dict[str, list[Run]] = {}
    for folder, runs in found:
        for run in runs:
            name = run.agent if max(counts.values()) == 1 else f"{run.agent} ({folder.resolve().name})"
            trials.setdefault(name, []).append(replace(run, agent=name))
    first_folder = found[0][0]
    return Runs(
        {name: sorted(runs, key=lambda run: run.seed) for name, runs in trials.items()},
        baselines=first.summary["baselines"],
        untrained=_untrained(first_folder, first.summary["baselines"], notes),
        frontier=_frontier(_initial(first_folder, first.folder), notes),
        notes=notes,
    )


def _runs_of(folder: Path, notes: list[str]) -> list[Run]:
    """The runs in the folder of `train` or `compare`, in the order of its flags."""
    if not (folder / CONFIG).is_file():
        raise FlagError(f"{str(folder)!r} holds no run (no {CONFIG}); pass a folder that `train` or `compare` wrote.")
    places = trial_folders(folder)
    runs = [run for place in places if (run := _read_run(place, _initial(folder, place), notes)) is not None]
    if not runs:
        raise FlagError(f"{str(folder)!r} holds no run that was evaluated yet.")
    return runs


def _initial(folder: Path, run: Path) -> Path:
    """The folder of the baselines: of the run, or of the comparison that it belongs to."""
    candidates = (run / INITIAL, folder / INITIAL, run.parent.parent / INITIAL)
    return next((each for each in candidates if (each / BASELINES).is_file()), run / INITIAL)


def _read_run(folder: Path, initial: Path, notes: list[str]) -> Run | None:
    """None where a run has no evaluation yet."""
    flags = read_saved_config(folder)["flags"]
    files.check_types(folder / CONFIG, flags, {"agent": str, "seed": int})
    rows = read_metrics(folder)
    if not any(row.get("eval/objective") is not None for row in rows):
        return None
    path = folder / SUMMARY
    summary = checked_summary(path) if path.exists() else None
    if summary is not None and summary["num_updates"] < rows[-1]["num_updates"]:  # it was resumed for more tokens
        summary = None
    finished = summary is not None
    name = f"{short_name(flags['agent'])}, seed {flags['seed']}"
    if summary is None:
        if not (initial / BASELINES).is_file():
            raise DamagedFile(f"{initial / BASELINES} is missing: the share of the way is not known without it.")
        summary = _summary_so_far(flags, rows, read_baselines(initial / BASELINES))
        notes.append(f"{name} has not finished: its numbers are of its last evaluation.")
    summary["gaps"] = find_gaps(rows, summary["num_updates"])
    for each in [summary, *([summary["held_out"]] if summary["held_out"] else [])]:
        files.check_types(path, each, {"objective": float | None, "score": float | None, "kl": float | None})
        if None in (each["objective"], each["score"], each["kl"]):
            notes.append(f"{name} is left out: what was measured of it is not finite.")
            return None
    steps, damaged = read_steps(folder)
    notes += [f"{name}: {text}" for text in damaged]
    if summary["gaps"]:
        notes.append(f"{name}: rows of {METRICS_FILE} were lost; the curves are interrupted there.")
    tree = _tree(folder, notes) if finished else None
    return Run(folder, short_name(flags["agent"]), flags["seed"], flags, rows, summary, finished, steps, tree)


def _summary_so_far(flags: JsonObject, rows: list[Row], baselines: JsonObject) -> JsonObject:
    """The numbers of `summary.json` from the last evaluation."""
    last, end = [row for row in rows if row.get("eval/objective") is not None][-1], rows[-1]

    def measured(prefix: str, of: JsonObject) -> JsonObject:
        numbers = {name.removeprefix(prefix): value for name, value in last.items() if name.startswith(prefix)}
        share = normalized_objective(numbers["objective"], of)
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


def _tree(folder: Path, notes: list[str]) -> JsonObject | None:
    try:
        return read_tree(folder)
    except DamagedFile as error:
        notes.append(printable(error))
        return None


def _frontier(initial: Path, notes: list[str]) -> JsonObject | None:
    try:
        return read_frontier(initial)
    except DamagedFile as error:
        notes.append(printable(error))
        return None
