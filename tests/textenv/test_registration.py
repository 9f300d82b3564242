"""`textenv.register`: a function that returns a `TextMDP` becomes an environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

import textenv
from tests.helpers.tasks import words
from textenv import TextMDP

OWN = "own/Words-v0"


def made(vocab_size: int = 4, max_new_tokens: int = 3) -> TextMDP:
    """A task."""
    return TextMDP(**words(vocab_size, max_new_tokens=max_new_tokens))


def test_a_registered_task_is_a_single_and_a_batched_environment() -> None:
    """With its defaults, which arguments override, and the passive checker left out as for textenv's own tasks."""
    with pytest.raises(gym.error.UnregisteredEnv):  # control
        gym.make(OWN)
    textenv.register(OWN, f"{__name__}:made", vocab_size=5)
    try:
        single, several = gym.make(OWN), gym.make_vec(OWN, num_envs=2, max_new_tokens=2)
        assert isinstance(single.unwrapped, textenv.TextEnv) and isinstance(several, textenv.TextVectorEnv)
        assert (single.unwrapped.mdp.vocab_size, single.unwrapped.mdp.max_new_tokens) == (5, 3)
        assert (several.mdp.vocab_size, several.mdp.max_new_tokens) == (5, 2)
        own = textenv.get_mdp(gym.make(OWN, vocab_size=6))
        assert own.vocab_size == 6
        assert {gym.spec(name).disable_env_checker for name in (OWN, "textenv/Toy-v0")} == {True}
    finally:
        del gym.registry[OWN]


@pytest.mark.parametrize("task", [made, None, "made", ":made", "module:", "a b:made", "./module.py:made"])
def test_a_task_must_have_a_name(task: Any) -> None:
    """Before anything is registered; the module itself is imported when the environment is made."""
    with pytest.raises(ValueError, match="task must be 'module:function'"):
        textenv.register(OWN, task)
    assert OWN not in gym.registry
