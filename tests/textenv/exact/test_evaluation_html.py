"""An evaluation in a notebook: J, score, KL and a few states, with the object's numbers."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.html import Page
from textenv.exact import evaluate_log_probs, masked_log_softmax, solve, suboptimality_by_state


@pytest.mark.parametrize("kl_coef", [0.1, 0.0])
def test_it_shows_the_costliest_and_the_most_visited_states(kl_coef: float) -> None:
    """The rows of both tables, their sum, and J* - J."""
    env = gym.make("textenv/TajMahal-v0", kl_coef=kl_coef)
    solution = solve(env)
    tree = solution.tree
    logits = np.random.default_rng(0).normal(size=tree.child.shape)
    evaluation = evaluate_log_probs(tree, masked_log_softmax(logits, tree.child != -2))
    page = Page(evaluation._repr_html_())
    gap = solution.objective - evaluation.objective
    for name, value in {
        "J": evaluation.objective,
        "score": evaluation.score,
        "KL": evaluation.kl,
        "J* - J": gap,
    }.items():
        assert f"{name} {value:.4g}" in page.text
    costs = suboptimality_by_state(solution, evaluation)
    assert costs.sum() == pytest.approx(gap)
    tables = [page.rows[1:7], page.rows[8:14]]
    assert len(page.rows) == 14 and f"({len(costs) - 6:,} more states)" in page.text
    for rows, by, column in zip(tables, (costs, evaluation.occupancy), (5, 2), strict=True):
        largest = np.sort(by)[::-1][:6]
        assert [float(row[column]) for row in rows] == pytest.approx(largest.tolist(), rel=1e-3)
        for row in rows:
            state = tree.state_index(row[0], row[1])
            numbers = (evaluation.occupancy, evaluation.values, solution.values, costs)
            assert list(map(float, row[2:6])) == pytest.approx([x[state] for x in numbers], rel=1e-3)
            token = tree.mdp.tokenizer.convert_ids_to_tokens([int(evaluation.log_probs[state].argmax())])[0]
            assert row[6] == token and float(row[7]) == pytest.approx(
                np.exp(evaluation.log_probs[state].max()), rel=1e-3
            )


def test_a_small_tree_is_shown_whole() -> None:
    """Fewer states than rows, and a gold score."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=1, num_prompts=2)
    tree = solve(env).tree
    page = Page(evaluate_log_probs(tree, tree.ref_log_probs)._repr_html_())
    assert len(page.rows) == 6 and "more states" not in page.text and "gold" not in page.text
    tree = solve(gym.make("textenv/RewardHacking-v0")).tree
    evaluation = evaluate_log_probs(tree, tree.ref_log_probs)
    assert f"gold score {evaluation.gold_score:.4g}" in Page(evaluation._repr_html_()).text
