"""What is kept of a task of the suite: the baselines, each trial's evaluations, and where the gap to J* is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agents import files
from agents.files import JsonObject
from agents.policy import TransformerPolicy
from experiments.checkpoints import CHECKPOINT
from experiments.evaluation import Evaluator
from experiments.metrics_file import read_metrics
from experiments.optimum.variants import Variant
from textenv import exact

STATES = 3  # of the costliest
Gap = JsonObject


def record(
    group: str, variants: Sequence[Variant], summaries: Sequence[JsonObject], folder: Path, evaluator: Evaluator
) -> JsonObject:
    """Returns what is kept of a task.

    Args:
        group: of the task.
        variants: the agents that have finished.
        summaries: of the trial of each.
        folder: of the task.
        evaluator: of the task; of the first seed of each agent it measures where the gap is.
    """
    first = min(variant.seed for variant in variants)
    trials = []
    for variant, summary in zip(variants, summaries, strict=True):
        own = variant.folder(folder)
        gap = _gap(evaluator, own / CHECKPOINT) if variant.seed == first and evaluator.tree is not None else None
        trials.append(
            {
                "name": variant.name,
                "label": variant.label,
                "agent": variant.agent,
                "seed": variant.seed,
                "factor": variant.factor,
                "settings": variant.settings,
                "peer": variant.peer,
                **{name: summary.get(name) for name in ("objective", "objective_stderr", "score", "kl")},
                "share": summary["normalized_objective"],
                "share_stderr": summary["normalized_objective_stderr"],
                "num_timesteps": summary["num_timesteps"],
                "cpu_seconds": summary["cpu_seconds"],
                "curve": _curve(own),
                "gap": gap,
            }
        )
    return {"group": group, "baselines": summaries[0]["baselines"], "trials": trials}


def read_record(path: Path) -> JsonObject | None:
    """Returns what was kept of a task, None if it has not finished; raises a DamagedFile if the file was changed."""
    if not path.exists():
        return None
    found = files.read_json(path)
    files.check_types(path, found, {"group": str, "baselines": dict, "trials": list})
    return found


def _curve(folder: Path) -> JsonObject:
    """The evaluations of a trial: tokens, CPU seconds, J, score and KL of each."""
    rows = [row for row in read_metrics(folder) if "eval/objective" in row]
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
