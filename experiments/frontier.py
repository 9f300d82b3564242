"""`frontier.json` of a run: the exact frontier of score and KL, where the task is enumerated.

    pi_b(y|x) = pi_ref(y|x) exp(r(x, y) / b) / Z_b(x)

is the optimum for each b: no policy of the same KL to the reference has a larger reward. b = beta gives the task's
optimum, and b -> infinity the reference. A report draws it; nothing reads it to resume.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from agents import files
from agents.files import DamagedFile, JsonObject, check_types
from textenv import exact

FRONTIER = "frontier.json"
FACTORS = np.geomspace(1 / 16, 64, 31)  # of beta


def frontier(solution: exact.Solution) -> JsonObject:
    """Returns `kl_coef`, `score` and `kl` of the frontier's points, a list each; the largest KL first."""
    tree = solution.tree
    scale = solution.kl_coef or float(np.ptp(tree.rewards[tree.child != -2])) or 1.0
    points = []
    for kl_coef in (FACTORS * scale).tolist():
        best = exact.evaluate_log_probs(tree, exact.solve(tree, kl_coef=kl_coef).action_log_probs)
        points.append({"kl_coef": kl_coef, "score": best.score, "kl": best.kl})
    return {name: [point[name] for point in points] for name in ("kl_coef", "score", "kl")}


def write_frontier(solution: exact.Solution | None, folder: Path) -> None:
    """Writes `frontier.json` to a folder, unless it is there and whole, or the task is too large to enumerate."""
    if solution is None:
        return
    with suppress(DamagedFile):
        if read_frontier(folder) is not None:
            return
    files.write_json(folder / FRONTIER, frontier(solution))


def read_frontier(folder: Path) -> JsonObject | None:
    """Reads `frontier.json`; None where there is none.

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
    return content
