"""`tree.json` of a trial: where a policy goes, beside the reference and pi*, and which states cost how much of J* - J.

Of a toy alone. It has the states of each prompt that cost most or are reached most; a report draws it, and nothing
reads it to resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents import files
from agents.files import DamagedFile, JsonObject, check_types
from textenv import exact

TREE = "tree.json"
MOST_PROMPTS = 20  # with more, those that cost most
MOST_STATES = 40  # of a prompt
RARE = 0.005  # what is less, of the visits and of the cost of a prompt, is left out
Array = NDArray[np.float64]


def state_tree(solution: exact.Solution, evaluation: exact.Evaluation) -> JsonObject:
    """Returns the tree of a policy.

    Returns:
        `gap`, J* - J; `shown` and `of`, the number of states in it and of all, finished completions included; and
        `prompts`, a state each. A state has its `token` (of a prompt the text), the probabilities of that under the
        reference, the policy and pi* given the state before (`ref`, `pi`, `best`), its `cost`, its `subtree_cost`
        (with the costs of all states below it, also of those that are left out), and `children`. A finished completion
        has its `score` instead of costs.
    """
    walk = _Walk.of(solution, evaluation)
    tree = solution.tree
    roots = np.arange(len(tree.mdp.prompts.texts))
    costliest = np.sort(np.argsort(-walk.subtree_costs[roots], kind="stable")[:MOST_PROMPTS])
    kept = walk.kept_by_prompt()
    prompts = [walk.state(int(i), tree.mdp.prompts.texts[i], np.ones(3), kept[int(i)]) for i in costliest]
    return {
        "gap": solution.objective - evaluation.objective,
        "shown": sum(len(kept[int(i)]) for i in costliest),
        "of": len(tree.prompt) + tree.num_completions,
        "prompts": prompts,
    }


@dataclass(frozen=True)
class _Walk:
    """A tree with what is shown of its states.

    Attributes:
        tree: the enumeration.
        probs: pi(a|s) of the reference, the policy and pi*, [S, V, 3].
        reach: the largest of the three probabilities of reaching a state from its prompt, [S].
        costs, subtree_costs: of the state alone, and with all states below it, [S].
    """

    tree: exact.Tree
    probs: Array
    reach: Array
    costs: Array
    subtree_costs: Array

    @classmethod
    def of(cls, solution: exact.Solution, evaluation: exact.Evaluation) -> _Walk:
        tree, costs = solution.tree, exact.suboptimality_by_state(solution, evaluation)
        policies = (tree.ref_log_probs, evaluation.log_probs, solution.action_log_probs)
        log_probs = [np.where(tree.child != -2, each, -np.inf) for each in policies]
        reach = np.exp([tree.log_reach(each) for each in log_probs]).max(axis=0)
        subtree_costs = costs.copy()
        for level in reversed(tree.levels):
            parent, action = np.nonzero(tree.child[level] >= 0)
            np.add.at(subtree_costs, parent + level.start, subtree_costs[tree.child[level][parent, action]])
        return cls(tree, np.exp(np.stack(log_probs, axis=2)), reach, costs, subtree_costs)

    def kept_by_prompt(self) -> list[set[tuple[int, int]]]:
        """Of each prompt the states to show, as (state, -1), and the finished completions, as (last state, token).

        They are ranked by their share of the prompt's visits, or of its cost if that is larger. Neither is larger than
        that of the state before, so that what is kept is connected.
        """
        tree = self.tree
        last, token = tree.leaves()
        whole = self.subtree_costs[tree.prompt]
        share = np.divide(self.subtree_costs, whole, out=np.zeros_like(whole), where=whole > 0)
        rank = np.maximum(self.reach, share)
        leaf = np.minimum(self.reach[last] * self.probs[last, token].max(axis=1), rank[last])
        ranks = np.concatenate([rank, leaf])
        ends = np.stack([np.append(np.arange(len(rank)), last), np.append(np.full(len(rank), -1), token)], axis=1)
        prompt = np.append(tree.prompt, tree.prompt[last])
        kept: list[set[tuple[int, int]]] = [set() for _ in tree.mdp.prompts.texts]
        for i in np.argsort(-ranks, kind="stable"):  # of equal ranks the state before comes first
            own = kept[prompt[i]]
            if ranks[i] >= RARE and len(own) < MOST_STATES:
                own.add((int(ends[i, 0]), int(ends[i, 1])))
        return kept

    def state(self, index: int, token: str, probs: Array, kept: set[tuple[int, int]]) -> JsonObject:
        """A state, given its token with the probabilities of that, [3], and what is kept of its prompt."""
        tokenizer, children = self.tree.mdp.tokenizer, []
        for action in np.argsort(-self.probs[index, :, 2], kind="stable").tolist():
            child, own = int(self.tree.child[index, action]), self.probs[index, action]
            name = "end" if self.tree.mdp.is_eos[action] else str(tokenizer.convert_ids_to_tokens([action])[0])
            if (child, -1) in kept:
                children.append(self.state(child, name, own, kept))
            elif (index, action) in kept:
                score = round(float(self.tree.scores[index, action]), 4)
                children.append({"token": name, **_named(own), "score": score, "children": []})
        costs = {"cost": float(self.costs[index]), "subtree_cost": float(self.subtree_costs[index])}
        return {"token": token, **_named(probs), **costs, "children": children}


def _named(probs: Array) -> JsonObject:
    return dict(zip(("ref", "pi", "best"), (round(float(p), 5) for p in probs), strict=True))


def write_tree(solution: exact.Solution | None, evaluation: exact.Evaluation | None, folder: Path) -> None:
    """Writes `tree.json` to the folder of a trial; nothing where the task is too large to enumerate."""
    if solution is not None and evaluation is not None:
        files.write_json(folder / TREE, state_tree(solution, evaluation))


def read_tree(folder: Path) -> JsonObject | None:
    """Reads `tree.json`; None where there is none, or one of an earlier version.

    Raises:
        DamagedFile: it was cut off or changed.
    """
    path = folder / TREE
    if not path.is_file():
        return None
    content = files.read_json(path)
    if "least" in content:  # before subtree costs were written
        return None
    check_types(path, content, {"gap": float, "shown": int, "of": int, "prompts": list})
    for state in content["prompts"]:
        _check(path, state)
    return content


def _check(path: Path, state: object) -> None:
    if not isinstance(state, dict):
        raise DamagedFile(f"{path}: a state must be an object, got {state!r:.100}.")
    check_types(path, state, {"token": str, "ref": float, "pi": float, "best": float, "children": list})
    numbers = {"score": float | None} if "score" in state else {"cost": float, "subtree_cost": float}
    check_types(path, state, numbers)
    for child in state["children"]:
        _check(path, child)
