"""A player beside pi*: costs by the definition, over every completion of a toy."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from experiments.play.comparison import compare, likeliest, solve_task
from textenv import get_mdp
from textenv.testing import play


@pytest.mark.parametrize("kl_coef", [0.2, 0.0])
def test_the_costs_of_every_completion_sum_to_its_distance_from_the_optimum(kl_coef: float) -> None:
    """V* - J with J the sum of the environment's rewards; no cost is negative; with beta it is -beta log pi*."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=2, kl_coef=kl_coef)
    solution = solve_task(get_mdp(env))
    assert solution is not None
    tree, objectives = solution.tree, dict[int, list[float]]()
    states, actions = tree.paths()
    for row in range(len(actions)):
        prompt, tokens = int(tree.prompt[states[row, 0]]), actions[row][actions[row] >= 0].tolist()
        found, episode = compare(solution, prompt, tokens), play(env, prompt, tokens)
        costs = [token.cost for token in found.tokens]
        objective = float(episode.rewards.sum())
        objectives.setdefault(prompt, []).append(objective)
        assert sum(costs) == pytest.approx(found.optimum - objective) and min(costs) >= 0
        log_prob = sum(token.log_prob for token in found.tokens)
        assert log_prob == pytest.approx(solution.log_probs[row])
        if kl_coef > 0:
            assert sum(costs) == pytest.approx(-kl_coef * log_prob)
        for t, token in enumerate(found.tokens):
            probabilities = solution.action_log_probs[states[row, t]]
            assert token.log_prob == probabilities[tokens[t]] and token.best == probabilities.argmax()
    for prompt, found_objectives in objectives.items():  # pi*'s likeliest completion is the best to play always
        own = tree.prompt[tree.leaves()[0]] == prompt
        best, log_prob = likeliest(solution, prompt)
        found = compare(solution, prompt, best)
        assert log_prob == solution.log_probs[own].max()
        assert found.best == best and found.best_objective == pytest.approx(max(found_objectives))
        assert found.share(found.optimum) == 1 and found.share(found.reference) == 0


def test_the_reference_is_that_of_the_prompt() -> None:
    """V of the reference: the expected score."""
    env = gym.make("textenv/TajMahal-v0")
    solution = solve_task(get_mdp(env))
    assert solution is not None
    tree = solution.tree
    log_probs = tree.completion_log_probs(tree.ref_log_probs)
    state, action = tree.leaves()
    own = tree.prompt[state] == 5
    expected = (np.exp(log_probs) * tree.scores[state, action])[own].sum()
    assert compare(solution, 5, likeliest(solution, 5)[0]).reference == pytest.approx(expected)


def test_a_token_without_an_alternative_costs_nothing() -> None:
    """0, which a table shows without a minus."""
    mdp = get_mdp(gym.make("textenv/TajMahal-v0"))
    solution = solve_task(mdp)
    assert solution is not None
    costs = [token.cost for token in compare(solution, 0, mdp.encode_completion("the taj mahal is in").tolist()).tokens]
    assert costs[0] > 0 and costs[1:] == [0.0] * 4 and not np.signbit(costs).any()


def test_a_large_task_is_not_solved() -> None:
    """More than 100,000 completions."""
    assert solve_task(get_mdp(gym.make("textenv/Toy-v0", vocab_size=20, max_new_tokens=5))) is None
