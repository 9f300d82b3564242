"""Toy-v0: distributions of its prompts, the limit on its tables, and its reward."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest


@pytest.mark.parametrize("num_prompts", [1, 2, 5, 9])
def test_each_prompt_of_a_toy_has_its_own_distributions(num_prompts: int) -> None:
    """Prompts of one or several letters, and every last word after them, have different distributions."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, num_prompts=num_prompts, max_new_tokens=3)
    log_probs = []
    for prompt in range(num_prompts):
        for prefix in ([], [1], [2], [1, 1], [1, 2], [2, 1]):
            env.reset(options={"prompt": prompt, "completion": prefix})
            log_probs.append(env.step(1)[-1]["ref_log_prob"])
    table = np.array(log_probs).reshape(num_prompts, 6)
    assert (table[:, 3] == table[:, 5]).all()  # "a a" and "b a": same prompt, time and last word
    assert len(set(log_probs)) == 5 * num_prompts and not np.isclose(log_probs, -np.log(3)).any()


def test_a_toy_whose_tables_are_too_large_is_refused() -> None:
    """Before they are drawn; the error names their size and the limit."""
    with pytest.raises(ValueError, match=r"300,600,300 here, the limit is 30,000,000"):
        gym.make("textenv/Toy-v0", vocab_size=1001, max_new_tokens=1, num_prompts=300)


def test_scores_of_a_toy() -> None:
    """The sum of the weights along each completion; other weights give other scores."""
    scores = []
    for task_seed in (0, 1):
        env: Any = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, task_seed=task_seed).unwrapped
        reward, weights = env.mdp.reward.functions[0], env.mdp.reward.functions[0].weights
        completions = [[1, 2, 3], [3, 0], [0], [2, 1, 0], [1, 1]]
        for prompt in (0, 1):
            for completion in completions:
                expected, last = 0.0, 0
                for t, token in enumerate(completion):
                    expected, last = expected + weights[prompt, t, last, token], token
                tokens, length = np.array([completion]), np.array([len(completion)])
                assert reward.score_tokens(np.array([prompt]), tokens, length)[0] == pytest.approx(expected, abs=1e-12)
                scores.append(expected)
    half = len(scores) // 2
    assert all(a != b for a, b in zip(scores[:half], scores[half:], strict=True))  # negative control


def test_the_toys_reward_is_the_same_from_lists_and_arrays() -> None:
    """Completions of every length, in one batch."""
    mdp = gym.make("textenv/Toy-v0", max_new_tokens=12, num_prompts=5).unwrapped.mdp  # type: ignore[attr-defined]
    reward, rng = mdp.reward.functions[0], np.random.default_rng(0)
    length = rng.integers(1, 13, size=40)
    length[0] = 12
    prompt, tokens = rng.integers(5, size=40), rng.integers(6, size=(40, 12)) * (np.arange(12) < length[:, None])
    finished = mdp.finished(prompt, mdp.prompt_texts[prompt], tokens, length)
    assert mdp.score(finished).tolist() == reward(finished.prompts, finished.completions, finished.completion_ids)
    assert [len(ids) for ids in finished.completion_ids] == length.tolist()
