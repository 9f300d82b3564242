"""The tree of a toy: probabilities of three policies, costs that add up to J* - J, and a file that is checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents import files
from experiments import state_tree as module
from experiments.evaluation import Evaluator
from experiments.state_tree import TREE, read_tree, state_tree, write_tree
from tests.helpers.policies import random_policy
from textenv import exact


def states(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A state and all below it."""
    yield state
    for child in state["children"]:
        yield from states(child)


def test_the_whole_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a limit: probabilities of each state's tokens add up to 1, all costs to J* - J; scores are the task's."""
    env = gym.make_vec("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=2, kl_coef=0.3)
    evaluator = Evaluator.for_env(env, 8)
    known = exact.evaluate(env, random_policy(env))
    monkeypatch.setattr(module, "RARE", 0.0)
    assert evaluator.solution is not None
    found = state_tree(evaluator.solution, exact.evaluate(evaluator.solution.tree, random_policy(env)))
    everything = [state for prompt in found["prompts"] for state in states(prompt)]
    assert [prompt["token"] for prompt in found["prompts"]] == list(env.unwrapped.prompts)
    inner = [state for state in everything if state["children"]]
    for state in inner:
        for name in ("ref", "pi", "best"):
            assert sum(child[name] for child in state["children"]) == pytest.approx(1.0, abs=1e-4)
    gap = evaluator.solution.objective - known.objective
    assert found["gap"] == pytest.approx(gap) == sum(state["cost"] for state in inner)
    ends = [state for state in everything if "score" in state]
    assert len(ends) == evaluator.solution.tree.num_completions
    leaves = evaluator.solution.tree
    assert sorted(state["score"] for state in ends) == pytest.approx(sorted(leaves.scores[leaves.leaves()]), abs=1e-4)
    first = [child["best"] for child in found["prompts"][0]["children"]]
    assert first == sorted(first, reverse=True)


def test_rare_states_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state that is shown is reached by one of the policies; a large tree is cut further."""
    env = gym.make_vec("textenv/TajMahal-v0")
    evaluator = Evaluator.for_env(env, 8)
    assert evaluator.solution is not None
    known = exact.evaluate(evaluator.solution.tree, random_policy(env))
    small = state_tree(evaluator.solution, known)
    monkeypatch.setattr(module, "MOST_STATES", 60)
    smaller = state_tree(evaluator.solution, known)
    sizes = [sum(1 for prompt in found["prompts"] for _ in states(prompt)) for found in (small, smaller)]
    assert sizes[1] < sizes[0] <= 600 and smaller["least"] > small["least"] >= 0.01

    def check(state: dict[str, Any], reach: tuple[float, ...]) -> None:
        further = tuple(r * state[name] for r, name in zip(reach, ("ref", "pi", "best"), strict=True))
        assert max(further) >= small["least"] - 1e-4
        for child in state["children"]:
            check(child, further)

    for prompt in small["prompts"]:
        check(prompt, (1.0, 1.0, 1.0))


def test_the_file_is_read_as_it_was_written_or_refused(tmp_path: Path) -> None:
    """None where there is none; a number that was changed, and a state that is none, are damage."""
    env = gym.make_vec("textenv/Toy-v0", vocab_size=3, max_new_tokens=2, num_prompts=1)
    assert read_tree(tmp_path) is None
    solution = exact.solve(env)
    write_tree(solution, exact.evaluate(solution.tree, random_policy(env)), tmp_path)
    found = read_tree(tmp_path)
    assert found is not None and len(found["prompts"]) == 1
    write_tree(None, None, tmp_path / "nowhere")  # too large: nothing is written
    assert not (tmp_path / "nowhere").exists()
    path = tmp_path / TREE
    path.write_text(path.read_text().replace('"least": 0.01', '"least": 0.02'))
    with pytest.raises(files.DamagedFile):
        read_tree(tmp_path)
    content = {key: value for key, value in found.items() if key != "checksum"}
    content["prompts"] = [content["prompts"][0] | {"children": ["x"]}]
    files.write_json(path, json.loads(json.dumps(content)))
    with pytest.raises(files.DamagedFile, match="a state must be an object, got 'x'"):
        read_tree(tmp_path)
