"""The enumeration of a toy: its paths, its size limit and its batches."""

from __future__ import annotations

import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.brute_force import by_completion
from tests.helpers.envs import CallCounter
from tests.helpers.tasks import (
    RandomPolicy,
    golden,
    make,
    random_reference,
    tasks,
    words,
    zero,
)
from textenv import TextMDP, exact
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.tree import BATCH, enumerate_tree


@settings(max_examples=20, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_paths_lead_to_their_completions(arguments: dict[str, Any], seed: int) -> None:
    """Each path begins at a prompt, follows `child` to the end, has the completion's tokens and its probability."""
    task = TextMDP(**arguments)
    tree = enumerate_tree(task)
    states, actions = tree.paths()
    assert states.shape == actions.shape == (tree.num_completions, len(tree.levels))
    log_probs = exact.evaluate(tree, RandomPolicy(task.vocab_size, seed)).log_probs
    total, completions = tree.completion_log_probs(log_probs), list(by_completion(tree, np.zeros(tree.num_completions)))
    for row, (prompt, tokens) in enumerate(completions):
        length = len(tokens)
        assert actions[row].tolist() == [*tokens] + [-1] * (len(tree.levels) - length)
        assert (states[row, length:] == -1).all()
        text = task.prompts.texts[prompt]
        visited = [tree.state_index(text, list(tokens[:t])) for t in range(length)]
        assert states[row, :length].tolist() == visited == tree.states_of(prompt, tokens).tolist()
        assert tree.child[visited, list(tokens)].tolist() == [*visited[1:], -1]
        assert (states[row, 0], tree.prompt[visited[-1]]) == (prompt, prompt)
        assert np.exp(log_probs[visited, list(tokens)]).prod() == pytest.approx(np.exp(total[row]), rel=1e-9)
    env = make(arguments)
    for row in np.random.default_rng(seed).integers(tree.num_completions, size=3):  # the environment ends there too
        sampled = [int(token) for token in actions[row] if token >= 0]
        env.reset(options={"prompt": completions[row][0], "completion": sampled[:-1]})
        _, _, terminated, _, info = env.step(sampled[-1])
        assert terminated and info["completion"] == task.decode(sampled)


def test_paths_of_different_completions_differ() -> None:
    """Negative control: no two completions share a path, and in another order the probabilities do not match."""
    tree = enumerate_tree(gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3))
    states, actions = tree.paths()
    assert len(np.unique(np.hstack([states[:, :1], actions]), axis=0)) == tree.num_completions
    log_probs = exact.evaluate(tree, RandomPolicy(3)).log_probs
    along = np.where(states >= 0, log_probs[states, actions], 0.0).sum(axis=1)
    assert along == pytest.approx(tree.completion_log_probs(log_probs), abs=1e-12)
    assert np.abs(along[::-1] - tree.completion_log_probs(log_probs)).max() > 0.1


def check_refused_cheaply(task: TextMDP, match: str, **arguments: Any) -> None:
    """solve(task) raises TreeTooLarge with the message before it allocates 50 MB."""
    tracemalloc.start()
    try:
        with pytest.raises(exact.TreeTooLarge, match=match):
            exact.solve(task, **arguments)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_tree_too_large_is_refused_before_memory_is_spent() -> None:
    """A dense tree is refused with its size and the limit; the size is right where it can be counted."""
    tokenizer = WordTokenizer([f"w{i}" for i in range(49)])
    large = TextMDP(tokenizer, ["w1"], zero, max_new_tokens=20)
    check_refused_cheaply(large, r"about 10\^33 completions.*1 prompts.*50 tokens.*up to 20.*limit is 2,000,000.*lower")
    small = TextMDP(**words(max_new_tokens=4))
    size = exact.solve(small).tree.num_completions
    check_refused_cheaply(small, rf"has {size} completions.*limit is {size - 1}", max_completions=size - 1)
    assert exact.solve(small, max_completions=size).tree.num_completions == size


def test_the_message_gives_the_size_of_any_tree() -> None:
    """A number of completions with thousands of digits is rounded to a power of ten."""
    tokenizer = WordTokenizer([f"w{i}" for i in range(49)])
    check_refused_cheaply(TextMDP(tokenizer, ["w1"], zero, max_new_tokens=4000), r"about 10\^6\d\d\d completions")


def test_a_sparse_tree_too_large_is_refused_where_it_grows_too_large() -> None:
    """A sparse tree's size is not known beforehand: it is refused at the token where it exceeds the limit."""
    probs = np.r_[np.full(10, 0.1), np.zeros(10)]
    with np.errstate(divide="ignore"):
        reference = TableReference(np.log(probs))
    arguments = {"reference": reference, "max_new_tokens": 30}
    mdp = TextMDP(WordTokenizer([f"w{i}" for i in range(19)]), ["w1"], zero, **arguments)
    message = r"more than .* completions \(already at token 4 of 30\), the limit is 2,000"
    check_refused_cheaply(mdp, message, max_completions=2_000)


@pytest.mark.parametrize(("batch", "horizon"), [(1, 3), (7, 4), (BATCH, 6)])  # 1: the control, one call per node
def test_a_tree_is_enumerated_in_batches(batch: int, horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of reference and rewards per BATCH of a level, not per node; every state and completion counts once."""
    monkeypatch.setattr("textenv.tree.BATCH", batch)
    reference, reward, gold = CallCounter(random_reference(6, 0, sparse=False)), CallCounter(zero), CallCounter(golden)
    task = TextMDP(**words(6, reference=reference, reward=reward, gold_reward=gold, max_new_tokens=horizon))
    reference.calls.clear()
    tree = enumerate_tree(task)
    sizes = [level.stop - level.start for level in tree.levels]
    assert reference.calls == [min(batch, size - start) for size in sizes for start in range(0, size, batch)]
    assert len(reference.calls) <= len(sizes) + len(tree.prompt) / batch
    assert sum(reward.calls) == tree.num_completions and max(reward.calls) <= batch
    assert len(reward.calls) <= len(sizes) + 6 * len(tree.prompt) / batch and gold.calls == reward.calls
    assert (len(reference.calls) == len(tree.prompt)) == (len(reward.calls) == tree.num_completions) == (batch == 1)
    calls = len(reference.calls) + len(reward.calls)
    exact.solve(tree)
    exact.evaluate(tree, RandomPolicy(6))
    assert len(reference.calls) + len(reward.calls) == calls  # a tree is enumerated once
