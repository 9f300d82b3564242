"""`tree.json` of a trial: where a policy goes, beside the reference and pi*, and which states cost how much of J* - J.

Of a toy alone. It has the states that one of the three policies reaches often enough; a report draws it, and nothing
reads it to resume.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents import files
from agents.files import DamagedFile, JsonObject, check_types
from textenv import exact

TREE = "tree.json"
RARE = 0.01  # probability of a state under all three policies, given its prompt: rarer ones are left out
MOST_STATES = 600  # with more, rarer ones are left out as well
Array = NDArray[np.float64]


def state_tree(solution: exact.Solution, evaluation: exact.Evaluation) -> JsonObject:
    """Returns the tree of a policy.

    Returns:
        `gap`, J* - J; `least`, the probability below which states are left out; and `prompts`, a state each. A state
        has its `token` (of a prompt the text), what that is worth under the reference, the policy and pi* (`ref`, `pi`,
        `best`, probabilities given the state before), its `cost`, and `children`; a finished completion has its `score`
        instead.
    """
    least = RARE
    while True:
        walk = _Walk(solution, evaluation, least)
        prompts = [walk.state(i, text, np.ones(3), np.ones(3)) for i, text in enumerate(walk.mdp.prompts.texts)]
        if walk.count <= MOST_STATES or least > 0.5:
            return {"gap": solution.objective - evaluation.objective, "least": least, "prompts": prompts}
        least *= 2


class _Walk:
    """Walks the states of a tree in which one of three policies goes."""

    def __init__(self, solution: exact.Solution, evaluation: exact.Evaluation, least: float) -> None:
        self.tree, self.least, self.count = solution.tree, least, 0
        self.mdp = solution.tree.mdp
        self.costs = exact.suboptimality_by_state(solution, evaluation)
        log_probs = (self.tree.ref_log_probs, evaluation.log_probs, solution.action_log_probs)
        self.probs = np.exp(np.stack([np.where(self.tree.child != -2, x, -np.inf) for x in log_probs], axis=2))

    def state(self, index: int, token: str, probs: Array, reach: Array) -> JsonObject:
        """A state: its token, the probabilities of that under the three policies, and of the whole path, [3] each."""
        self.count += 1
        children = []
        for action in np.argsort(-self.probs[index, :, 2], kind="stable"):
            further = reach * (own := self.probs[index, action])
            if further.max() < self.least:
                continue
            name = "end" if self.mdp.is_eos[action] else str(self.mdp.tokenizer.convert_ids_to_tokens([int(action)])[0])
            child = int(self.tree.child[index, action])
            if child >= 0:
                children.append(self.state(child, name, own, further))
            else:
                self.count += 1
                score = float(self.tree.scores[index, action])
                children.append({"token": name, **_named(own), "score": round(score, 4), "children": []})
        return {"token": token, **_named(probs), "cost": float(self.costs[index]), "children": children}


def _named(probs: Array) -> JsonObject:
    return dict(zip(("ref", "pi", "best"), (round(float(p), 5) for p in probs), strict=True))


def write_tree(solution: exact.Solution | None, evaluation: exact.Evaluation | None, folder: Path) -> None:
    """Writes `tree.json` to the folder of a trial; nothing where the task is too large to enumerate."""
    if solution is not None and evaluation is not None:
        files.write_json(folder / TREE, state_tree(solution, evaluation))


def read_tree(folder: Path) -> JsonObject | None:
    """Reads `tree.json`; None where there is none.

    Raises:
        DamagedFile: it was cut off or changed.
    """
    path = folder / TREE
    if not path.is_file():
        return None
    content = files.read_json(path)
    check_types(path, content, {"gap": float, "least": float, "prompts": list})
    for state in content["prompts"]:
        _check(path, state)
    return content


def _check(path: Path, state: object) -> None:
    if not isinstance(state, dict):
        raise DamagedFile(f"{path}: a state must be an object, got {state!r:.100}.")
    check_types(path, state, {"token": str, "ref": float, "pi": float, "best": float, "children": list})
    for child in state["children"]:
        _check(path, child)
