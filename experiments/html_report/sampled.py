"""Reads `samples/UPDATE.jsonl` of a run for the page: each token's numbers in columns, as many steps as fit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from agents import files
from agents.files import DamagedFile, JsonObject, check_types
from experiments.token_samples import sample_files
from textenv.data import printable

Column = list[float | None]
EXACT = {  # by name in the file: the name of the column; an earlier version wrote `lost`
    "advantage": "exact_advantage",
    "value": "exact_value",
    "optimal_value": "optimal_value",
    "optimal_q": "optimal_q",
    "cost": "cost",
    "lost": "cost",
    "state_cost": "state_cost",
}
DIGITS = 5  # significant ones


class Completion(NamedTuple):
    """A sampled completion; where it `stopped`, its last token is EOS.

    A column has a number for each token; what is not known has no column.
    """

    prompt: str
    completion: str
    score: float | None
    tokens: list[str]
    stopped: bool
    columns: dict[str, Column]


class Step(NamedTuple):
    """The completions of one evaluation."""

    update: int
    timesteps: int
    completions: list[Completion]


def read_steps(folder: Path) -> tuple[list[Step], list[str]]:
    """Returns the steps of a run, and sentences about files that were damaged, which are left out."""
    steps, damaged = [], []
    for update, path in sample_files(folder):
        try:
            rows = files.read_rows(path)
            completions = [_completion(path.with_name(f"{path.name}:{i}"), row) for i, row in enumerate(rows, start=1)]
            timesteps = [row["num_timesteps"] for row in rows]
        except DamagedFile as error:
            damaged.append(printable(error))
        else:
            if rows:
                steps.append(Step(update, timesteps[0], completions))
    return steps, damaged


def _completion(path: Path, row: JsonObject) -> Completion:
    """Checks a row, and computes what the page shows.

    Raises:
        DamagedFile: it is not what a trial writes.
    """
    check_types(path, row, {"num_timesteps": int, "prompt": str, "completion": str, "tokens": list, "stopped": bool})
    check_types(path, row, {"score": float | None})
    tokens = row["tokens"]
    for token in tokens:
        check_types(path, {"a token": token}, {"a token": str})
    if "log_prob" not in row:  # its reward failed
        return Completion(row["prompt"], row["completion"], None, tokens, row["stopped"], {})
    check_types(path, {"exact": {}, **row}, {"reward_terms": dict, "exact": dict})

    def column(name: str, values: object) -> Column:
        check_types(path, {name: values}, {name: list})
        assert isinstance(values, list)
        for value in values:
            check_types(path, {name: value}, {name: float | None})
        if len(values) != len(tokens):
            raise DamagedFile(f"{path}: {name} must have a number for each of {len(tokens)} tokens, got {len(values)}.")
        return values

    log_prob, ref_log_prob = (column(name, row.get(name)) for name in ("log_prob", "ref_log_prob"))
    terms = {str(name): column(str(name), values) for name, values in row["reward_terms"].items()}
    kl = [terms.pop(name) for name in ("kl_reference", "kl_policy") if name in terms]
    columns: dict[str, Column] = {}
    for name in ("advantage", "value"):
        if name in row:
            columns[name] = column(name, row[name])
    columns["reward"] = _sum([*terms.values(), *kl])
    if kl:
        columns["kl"] = _sum(kl)
    columns |= {name if name == "score" else f"shaping:{name}": values for name, values in terms.items()}
    columns["log_ratio"] = _sum([log_prob, [None if value is None else -value for value in ref_log_prob]])
    columns["entropy"] = column("entropy", row.get("entropy"))
    columns["probability"] = [None if value is None else math.exp(min(value, 0.0)) for value in log_prob]
    known = row.get("exact", {})
    columns |= {shown: column(name, known[name]) for name, shown in EXACT.items() if name in known}
    rounded = {name: [_round(value) for value in values] for name, values in columns.items()}
    return Completion(row["prompt"], row["completion"], row["score"], tokens, row["stopped"], rounded)


def _sum(columns: list[Column]) -> Column:
    return [
        None if None in each else math.fsum(x for x in each if x is not None) for each in zip(*columns, strict=True)
    ]


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}") + 0.0  # no -0


def within(steps: list[Step], size: int) -> list[Step]:
    """The steps that fit into about `size` bytes of JSON, evenly spaced, the first and the last among them.

    Where two do not fit, they have fewer completions.
    """
    sizes = [len(json.dumps([each._asdict() for each in step.completions])) for step in steps]
    keep = len(steps)
    while keep > 2 and sum(sizes[i] for i in _spread(len(steps), keep)) > size:
        keep -= 1
    kept = [steps[i] for i in _spread(len(steps), keep)]
    most = max((len(step.completions) for step in kept), default=0)
    while most and _size(kept, most) > size:
        most -= 1
    return [step._replace(completions=step.completions[:most]) for step in kept] if most else []


def _size(steps: list[Step], most: int) -> int:
    return len(json.dumps([[each._asdict() for each in step.completions[:most]] for step in steps]))


def _spread(count: int, keep: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, keep).tolist()})
