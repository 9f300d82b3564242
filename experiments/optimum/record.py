"""What is kept of a task of the suite: the baselines, each trial's evaluations, and where the gap to J* is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from agents import files
from agents.files import JsonObject
from agents.policy import TransformerPolicy
from experiments.checkpoints import CHECKPOINT
from experiments.evaluation import Evaluator
from experiments.metrics_file import read_metrics
from experiments.optimum.tasks import SuiteTask
from experiments.optimum.variants import Variant
from textenv import exact

STATES = 3  # of the costliest
Gap = JsonObject


def add_trial(
    kept: JsonObject | None,
    task: SuiteTask,
    variant: Variant,
    summary: JsonObject,
    total_timesteps: int,
    folder: Path,
    evaluator: Evaluator | None = None,
) -> JsonObject:
    """Returns what is kept of a task, with one more trial.

    Args:
        kept: what was kept before; None at first.
        task: the task.
        variant: the agent.
        summary: of its trial.
        total_timesteps: the tokens that it was to have.
        folder: of the task.
        evaluator: of the task, to measure where the gap is; None: it is not measured.
    """
    own, measured = variant.folder(folder), ("objective", "objective_stderr", "score", "kl")
    trial = {
        "task": task.name,
        "name": variant.name,
        "label": variant.label,
        "agent": variant.agent,
        "seed": variant.seed,
        "factor": variant.factor,
        "settings": variant.settings,
        "peer": variant.peer,
        **{name: summary.get(name) for name in measured},
        **{name: summary[name] for name in ("normalized_objective", "normalized_objective_stderr")},
        "total_timesteps": total_timesteps,
        "num_timesteps": summary["num_timesteps"],
        "cpu_seconds": summary["cpu_seconds"],
        "curve": _curve(own),
        "gap": None if evaluator is None or evaluator.tree is None else _gap(evaluator, own / CHECKPOINT),
    }
    before = [] if kept is None else [each for each in kept["trials"] if not _is(each, variant)]
    return {"group": task.group, "baselines": summary["baselines"], "trials": [*before, trial]}


def has_trial(kept: JsonObject | None, variant: Variant, total_timesteps: int) -> bool:
    """Whether a trial of an agent is kept that had so many tokens."""
    trials = [] if kept is None else kept["trials"]
    return any(_is(trial, variant) and trial["total_timesteps"] == total_timesteps for trial in trials)


def _is(trial: JsonObject, variant: Variant) -> bool:
    return (trial["name"], trial["seed"]) == (variant.name, variant.seed)


def read_record(path: Path) -> JsonObject | None:
    """Returns what was kept of a task, None if nothing was; raises a DamagedFile if the file was changed."""
    if not path.exists():
        return None
    found = files.read_json(path)
    files.check_types(path, found, {"group": str, "baselines": dict, "trials": list})
    return found


def _curve(folder: Path) -> JsonObject:
    """The evaluations of a trial: tokens, CPU seconds, J, score and KL of each."""
    rows = [row for row in read_metrics(folder) if row.get("eval/objective") is not None]
    names = ("num_timesteps", "cpu_seconds", "eval/objective", "eval/score", "eval/kl")
    return {name.removeprefix("eval/"): [round(row[name] or 0.0, 5) for row in rows] for name in names}


def _gap(evaluator: Evaluator, checkpoint: Path) -> Gap:
    """J* - J by the token that it is lost at, and the states that cost most."""
    assert evaluator.solution is not None
    policy = TransformerPolicy.from_pretrained(checkpoint)
    tree = evaluator.solution.tree
    costs = exact.suboptimality_by_state(evaluator.solution, exact.evaluate(tree, policy))
    time = (tree.tokens >= 0).sum(axis=1)
    states = evaluator.costliest_states(policy, STATES)
    return {"by_token": np.bincount(time, costs).tolist(), "states": states}
