"""Action spaces: the first sample of a space that was never seeded is drawn as every other one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import make, words
from textenv import TextMDP, TextVectorEnv
from textenv.references import TableReference
from textenv.wrappers import CompletionAction

# After token i only token i + 1 is allowed, so that the mask is another one in every state.
CYCLE = TableReference(np.where(np.eye(4)[[1, 2, 3, 0]] == 1, 0.0, -np.inf))


@pytest.mark.parametrize("seed", [None, 0])
def test_samples_are_allowed_in_every_state(seed: int | None) -> None:
    """Two in each state, with the space seeded before the first reset or never."""
    env = make(words(reference=CYCLE, prompts=["a"], max_new_tokens=4))
    envs = TextVectorEnv(TextMDP(**words(reference=CYCLE, prompts=["a"], max_new_tokens=4)), 2)
    for each in (env, envs):
        if seed is not None:
            each.action_space.seed(seed)
        each.reset(seed=0)
        each.step(2 if each is env else np.array([2, 2]))
        for _ in range(2):
            assert np.all(each.action_space.sample() == 3)
    env.action_space.seed(1)
    assert env.action_space.sample() == 2  # as before the first reset


def test_samples_of_whole_completions_are_allowed_in_the_present_state() -> None:
    """The same of `CompletionAction`: two samples after the reset go on from its prompt."""
    env: Any = CompletionAction(gym.make("textenv/TajMahal-v0"))
    prompt = env.unwrapped.prompts[-1]
    env.reset(options={"prompt": prompt})
    for _ in range(2):
        completion = env.action_space.sample()
        assert env.step(completion)[2]
        env.reset(options={"prompt": prompt})
