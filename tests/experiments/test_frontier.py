"""The frontier of score and KL: that of the oracle, also with shaping, with ties and at beta 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import textenv
from agents.files import write_json
from experiments.frontier import frontier, read_frontier, write_frontier
from textenv import exact
from textenv.shaping import missing_eos_penalty
from textenv.tasks.toy import toy


def excess(found: dict[str, list[float]], policies: list[exact.Evaluation]) -> float:
    """The most by which a policy is above a tangent of the line, whose point of b has the largest E[score] - b KL."""
    b, score, kl = (np.array(found[name]) for name in ("kl_coef", "score", "kl"))
    return max(float((each.score - b * each.kl - (score - b * kl)).max()) for each in policies)


def random_policies(tree: exact.Tree, count: int) -> list[exact.Evaluation]:
    """Policies between the reference, random ones, and the optima of a few beta."""
    draw = np.random.default_rng(0)
    optima = [exact.solve(tree, kl_coef=beta).action_log_probs for beta in (0.02, 0.1, 0.5)]
    logits = [
        mean + noise * draw.normal(size=mean.shape)
        for mean in [tree.ref_log_probs, *optima]
        for noise in draw.uniform(0, 1, size=count)
    ]
    allowed = tree.child != -2
    return [exact.evaluate_log_probs(tree, exact.masked_log_softmax(each, allowed)) for each in logits]


def test_it_is_that_of_the_oracle(tmp_path: Path) -> None:
    """It contains the optimum of the task, begins at the highest score, ends near the reference, and is read back."""
    tree = exact.enumerate_tree(toy(vocab_size=3, max_new_tokens=3, kl_coef=0.2))
    solution = exact.solve(tree)
    found = frontier(solution)
    at = found["kl_coef"].index(pytest.approx(0.2))
    best = exact.evaluate_log_probs(tree, solution.action_log_probs)
    assert (found["score"][at], found["kl"][at]) == pytest.approx((best.score, best.kl))
    assert (np.diff(found["kl"]) <= 1e-12).all() and (np.diff(found["score"]) <= 1e-12).all()
    assert found["kl_coef"][0] == 0.0 and found["kl"][-1] < 0.01
    write_frontier(solution, tmp_path)
    write_frontier(None, tmp_path / "nowhere")
    assert read_frontier(tmp_path) == found and read_frontier(tmp_path / "nowhere") is None
    write_json(
        tmp_path / "frontier.json", {name: values[1:] for name, values in found.items()}
    )  # as once, without b = 0
    assert read_frontier(tmp_path) is None
    write_frontier(solution, tmp_path)
    assert read_frontier(tmp_path) == found


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("shaping", [False, True])
def test_no_policy_has_a_higher_score_at_its_kl(kl_coef: float, shaping: bool) -> None:
    """Also where the reward has shaping; the line of the optima for the rewards does not hold then."""
    terms = [missing_eos_penalty(2.0)] if shaping else []
    tree = exact.enumerate_tree(toy(vocab_size=4, max_new_tokens=3, kl_coef=kl_coef, shaping=terms))
    found = frontier(exact.solve(tree))
    plain = toy(vocab_size=4, max_new_tokens=3)
    policies = random_policies(tree, 30) + [
        exact.evaluate_log_probs(tree, exact.solve(plain, kl_coef=b).action_log_probs) for b in (0.05, 0.1, 0.3)
    ]
    assert excess(found, policies) < 1e-9
    optima = [exact.evaluate_log_probs(tree, exact.solve(tree, kl_coef=b).action_log_probs) for b in found["kl_coef"]]
    of_rewards = found | {"kl": [each.kl for each in optima], "score": [each.score for each in optima]}
    assert (excess(of_rewards, policies) > 0.01) == shaping  # control


def test_it_begins_at_the_highest_score() -> None:
    """With beta 0 the optimum is its first point; where completions tie, the reference among them, of the least KL."""
    tree = exact.enumerate_tree(toy(vocab_size=4, max_new_tokens=3, kl_coef=0.0))
    solution = exact.solve(tree)
    best = exact.evaluate_log_probs(tree, solution.action_log_probs)
    found = frontier(solution)
    assert (found["score"][0], found["kl"][0]) == pytest.approx((best.score, best.kl))
    words = textenv.WordTokenizer("a b c")

    def long(prompts: object, completions: list[str], completion_ids: object, **columns: object) -> list[float]:
        return [float(len(completion.split()) == 2) for completion in completions]

    tied = exact.enumerate_tree(textenv.TextMDP(words, ["a"], long, max_new_tokens=2, kl_coef=0.1))
    state, action = tied.leaves()
    mass = float(np.exp(tied.completion_log_probs(tied.ref_log_probs))[tied.scores[state, action] == 1].sum())
    found = frontier(exact.solve(tied))
    assert (found["score"][0], found["kl"][0]) == pytest.approx((1.0, -np.log(mass))) and mass < 1
    assert found["kl"][0] == pytest.approx(found["kl"][1], rel=1e-3)  # the limit of small b
