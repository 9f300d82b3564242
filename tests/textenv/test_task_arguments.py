"""Arguments of `gym.make` and `gym.make_vec`: whatever one is given, an episode works, or an error says why not.

The arguments are read off the tasks' own signatures, so that a new one is tried too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from gymnasium.envs.registration import load_env_creator, registry

from tests.helpers.refusals import ODD, NotRefused, refused
from tests.helpers.tasks import words
from textenv import TextMDP
from textenv.env import TextEnv, make
from textenv.vector import TextVectorEnv, make_vec

SINGLE = {name for name in inspect.signature(TextEnv).parameters if name != "mdp"}
BATCHED = {name for name in inspect.signature(TextVectorEnv).parameters if name != "mdp"}
LOADED = {"tokenizer", "reference", "reward", "gold_reward"}  # a string names a folder, or a repository on the hub


def arguments() -> Iterator[tuple[str, str, bool]]:
    """Every task without a model, every argument of it, single and batched."""
    for task in ("TajMahal-v0", "Toy-v0", "RewardHacking-v0", "Text-v0"):
        creator = load_env_creator(registry[f"textenv/{task}"].kwargs["task"])
        own = {*inspect.signature(TextMDP if task == "Text-v0" else creator).parameters}
        yield from ((task, name, False) for name in sorted(own | SINGLE))
        yield from ((task, name, True) for name in sorted(own | BATCHED))


def play_one(task: str, batched: bool, given: dict[str, Any]) -> None:
    """Makes the environment with these arguments, and steps it to the end of an episode."""
    base: dict[str, Any] = words() if task == "Text-v0" else {}
    base |= {"task": registry[f"textenv/{task}"].kwargs["task"]} | ({"num_envs": 2} if batched else {})
    env: Any = (make_vec if batched else make)(**(base | given))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(20):
        if np.any(env.step(env.action_space.sample())[2]):
            return


@pytest.mark.parametrize(("task", "name", "batched"), [*arguments()])
def test_an_argument_works_or_is_refused(task: str, name: str, batched: bool) -> None:
    """None, and a value of every other type."""
    for value in [None, *ODD]:
        texts = [*value] if isinstance(value, list) or getattr(value, "ndim", 0) == 1 else [value]
        if not (name in LOADED and any(isinstance(text, str) for text in texts)):
            with suppress(NotRefused), refused():
                play_one(task, batched, {name: value})


def test_every_argument_is_tried() -> None:
    """Control: those of all layers; and a good value of each kind works, and one of another type is refused."""
    tried = {name for _, name, _ in arguments()}
    assert {"kl_coef", "policy", "render_mode", "num_envs", "autoreset_mode", "task_seed", "shaping", "reward"} <= tried
    with pytest.raises(NotRefused), refused():
        play_one("Toy-v0", True, {"kl_coef": 0.5, "num_envs": np.int64(3), "autoreset_mode": "SameStep"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl_coef": None}, "kl_coef .beta. must be finite in float32, >= 0, got None"),
        ({"shaping": None}, "shaping must be a function of transitions or a list of them.*got None"),
        ({"shaping": [dict]}, "shaping must be a function of transitions.*got .<class 'dict'>"),
        ({"shaping": lambda: None}, "shaping must be a function of transitions"),
        ({"render_mode": np.zeros(2)}, "render_mode must be None or 'ansi' for a vector environment, got array"),
        ({"autoreset_mode": "next"}, "autoreset_mode must be one of 'NextStep', 'SameStep', 'Disabled', got 'next'"),
        ({"num_envs": 10**30}, "num_envs must be a whole number, at most"),
        ({"policy": "gpt2"}, "A policy must be a function .* got 'gpt2'"),
        ({"policy": lambda input_ids: None}, "A policy must be a function .input_ids, attention_mask. ->"),
        ({"policy": dict}, "A policy must be a function .* got <class 'dict'>"),
    ],
)
def test_the_error_names_argument_and_value(given: dict[str, Any], message: str) -> None:
    """In one line, when the environment is made."""
    with refused(match=message):
        make_vec(registry["textenv/Toy-v0"].kwargs["task"], **({"num_envs": 2} | given))
