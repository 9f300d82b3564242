"""Toy-v0: distributions of its prompts, and the limit on its tables."""

from __future__ import annotations

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
