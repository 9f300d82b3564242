"""The tree of a toy: probabilities of three policies, costs that add up to J* - J, and a file that is checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from agents import files
from experiments import state_tree as module
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
    solution = exact.solve(env)
    known = exact.evaluate(solution.tree, random_policy(env))
    monkeypatch.setattr(module, "RARE", 0.0)
    found = state_tree(solution, known)
    everything = [state for prompt in found["prompts"] for state in states(prompt)]
    assert [prompt["token"] for prompt in found["prompts"]] == list(env.unwrapped.prompts)
    assert found["shown"] == found["of"] == len(everything)
    inner = [state for state in everything if state["children"]]
    for state in inner:
        for name in ("ref", "pi", "best"):
            assert sum(child[name] for child in state["children"]) == pytest.approx(1.0, abs=1e-4)
        assert state["subtree_cost"] == pytest.approx(sum(each.get("cost", 0.0) for each in states(state)))
    gap = solution.objective - known.objective
    assert found["gap"] == pytest.approx(gap) == sum(state["cost"] for state in inner)
    assert max(state["cost"] for state in inner) < 0.9 * gap  # control: it is not all in one state
    ends = [state for state in everything if "score" in state]
    leaves = solution.tree
    assert len(ends) == leaves.num_completions
    assert sorted(state["score"] for state in ends) == pytest.approx(sorted(leaves.scores[leaves.leaves()]), abs=1e-4)
    first = [child["best"] for child in found["prompts"][0]["children"]]
    assert first == sorted(first, reverse=True)


def reach_of(prompt: dict[str, Any]) -> Iterator[tuple[dict[str, Any], float]]:
    """The states of a prompt, with the largest probability of reaching each under the three policies."""

    def below(state: dict[str, Any], so_far: tuple[float, ...]) -> Iterator[tuple[dict[str, Any], float]]:
        here = tuple(r * state[name] for r, name in zip(so_far, ("ref", "pi", "best"), strict=True))
        yield state, max(here)
        for child in state["children"]:
            yield from below(child, here)

    yield from below(prompt, (1.0, 1.0, 1.0))


def test_what_costs_or_is_reached_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt has a budget of its own; states that cost much come before those that are reached less."""
    env = gym.make_vec("textenv/TajMahal-v0")
    solution = exact.solve(env)
    known = exact.evaluate(solution.tree, random_policy(env))
    found = state_tree(solution, known)
    assert len(found["prompts"]) == 18
    for prompt in found["prompts"]:
        reached = list(reach_of(prompt))
        assert 10 < len(reached) <= module.MOST_STATES
        for state, probability in reached:
            cost = state.get("subtree_cost", 0.0)
            assert max(probability, cost / prompt["subtree_cost"]) >= module.RARE - 1e-4
    whole = sum(exact.suboptimality_by_state(solution, known))
    assert sum(state.get("cost", 0) for prompt in found["prompts"] for state in states(prompt)) > 0.9 * whole
    monkeypatch.setattr(module, "MOST_STATES", 4)
    monkeypatch.setattr(module, "MOST_PROMPTS", 3)
    small = state_tree(solution, known)
    assert small["shown"] == 12 == sum(1 for prompt in small["prompts"] for _ in states(prompt)) < small["of"]
    kept = {prompt["token"] for prompt in small["prompts"]}
    others = [prompt["subtree_cost"] for prompt in found["prompts"] if prompt["token"] not in kept]
    assert min(prompt["subtree_cost"] for prompt in small["prompts"]) >= max(others)


def test_the_blame_for_paris_is_in_the_tree_of_taj_mahal() -> None:
    """The reference's own tree: the state that chooses "paris" has a cost, and the one after it has none."""
    solution = exact.solve(gym.make_vec("textenv/TajMahal-v0"))
    found = state_tree(solution, exact.evaluate_log_probs(solution.tree, solution.tree.ref_log_probs))
    prompt = next(each for each in found["prompts"] if each["token"] == "where is the taj mahal located")
    choosing = [state for state in states(prompt) if any(child["token"] == "paris" for child in state["children"])]
    costliest = max(choosing, key=lambda state: float(state["cost"]))
    paris = next(child for child in costliest["children"] if child["token"] == "paris")
    assert costliest["cost"] > 0.2 * prompt["subtree_cost"] and paris["subtree_cost"] < 0.01 * costliest["cost"]
    assert paris["ref"] > 100 * paris["best"]


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
    path.write_text(path.read_text().replace('"shown": ', '"shown": 1'))
    with pytest.raises(files.DamagedFile):
        read_tree(tmp_path)
    prompt, end = found["prompts"][0], {"token": "end", "ref": 1.0, "pi": 1.0, "best": 1.0, "children": []}
    for damaged, message in (
        ({"children": ["x"]}, "a state must be an object, got 'x'"),
        ({"cost": "1"}, "cost must be a finite number"),
        ({"children": [end | {"score": "1"}]}, "score must be a finite number or null"),
        ({"children": [end]}, "cost must be a finite number"),
    ):
        files.write_json(path, {**found, "prompts": [prompt | damaged]})
        with pytest.raises(files.DamagedFile, match=message):
            read_tree(tmp_path)
    files.write_json(path, {**found, "prompts": [prompt | {"children": [end | {"score": None}]}]})  # control
    assert read_tree(tmp_path) is not None
    files.write_json(path, {"gap": 1.0, "least": 0.01, "prompts": []})  # of an earlier version
    assert read_tree(tmp_path) is None
