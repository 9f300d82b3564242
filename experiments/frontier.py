"""`frontier.json` of a run: the exact frontier of score and KL, where the task is enumerated.

    pi_b(y|x) = pi_ref(y|x) exp(score(x, y) / b) / Z_b(x)

has the largest E[score] - b KL for each b > 0: no policy of the same KL to the reference has a higher score. The line
begins at b -> 0, where the reference is restricted to the completions of the highest score, and ends near the
reference, b -> infinity. Without shaping, b = beta is the task's optimum. With shaping the optimum has a larger reward
than pi_b, and is below the line, which is of the score alone. A report draws it; nothing reads it to resume.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents import files
from agents.files import DamagedFile, JsonObject, check_types
from textenv import exact

FRONTIER = "frontier.json"
FACTORS = np.geomspace(1 / 16, 64, 31)  # of beta


def frontier(solution: exact.Solution) -> JsonObject:
    """Returns `kl_coef`, `score` and `kl` of the frontier's points, a list each; the largest KL first, at b = 0."""
    tree = replace(solution.tree, shaping=np.zeros_like(solution.tree.shaping))
    scale = solution.kl_coef or float(np.ptp(tree.scores[tree.leaves()])) / 16 or 1.0
    points = []
    for kl_coef in [0.0, *(FACTORS * scale).tolist()]:
        log_probs = exact.solve(tree, kl_coef=kl_coef).action_log_probs if kl_coef else _best_completions(tree)
        best = exact.evaluate_log_probs(tree, log_probs)
        points.append({"kl_coef": kl_coef, "score": best.score, "kl": best.kl})
    return {name: [point[name] for point in points] for name in ("kl_coef", "score", "kl")}


def _best_completions(tree: exact.Tree) -> NDArray[np.float64]:
    """log pi(a|s) [S, V] of the reference, given that the completion is one of those of the highest score."""
    best = exact.solve(tree, kl_coef=0.0).action_log_probs > -np.inf
    nothing = np.zeros_like(tree.scores)
    log_probs = np.where(best, tree.ref_log_probs, -np.inf)
    within = replace(tree, ref_log_probs=log_probs, child=np.where(best, tree.child, -2), scores=nothing)
    return exact.solve(within, kl_coef=1.0).action_log_probs  # V is then log P(the completion is one of them | s)


def write_frontier(solution: exact.Solution | None, folder: Path) -> None:
    """Writes `frontier.json` to a folder, unless it is there and whole, or the task is too large to enumerate."""
    if solution is None:
        return
    with suppress(DamagedFile):
        if read_frontier(folder) is not None:
            return
    files.write_json(folder / FRONTIER, frontier(solution))


def read_frontier(folder: Path) -> JsonObject | None:
    """Reads `frontier.json`; None where there is none, or one of an earlier version, which was of the whole reward.

    Raises:
        DamagedFile: it was cut off or changed.
    """
    path = folder / FRONTIER
    if not path.is_file():
        return None
    content = files.read_json(path)
    check_types(path, content, dict.fromkeys(("kl_coef", "score", "kl"), list))
    lengths = {len(content[name]) for name in ("kl_coef", "score", "kl")}
    for values in content.values():
        for value in values if isinstance(values, list) else [values]:
            check_types(path, {"each number": value}, {"each number": float})
    if len(lengths) != 1:
        raise DamagedFile(f"{path}: kl_coef, score and kl must be of the same length.")
    return content if content["kl_coef"][:1] == [0.0] else None
