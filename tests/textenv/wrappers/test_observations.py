"""Flat observations, and the mask in the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import allowed_action, make, tasks
from textenv.wrappers import FlatTokens, MaskInObservation


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_flat_tokens_keep_all_information(arguments: dict[str, Any], seed: int) -> None:
    """At each step the flat observation has the tokens and the empty columns of the two arrays, and the same masks."""
    plain, flat = make(arguments), FlatTokens(make(arguments))
    observation, info = plain.reset(seed=seed)
    flattened, _ = flat.reset(seed=seed)
    rng = np.random.default_rng(seed)
    terminated = False
    while not terminated:
        real = observation["attention_mask"] == 1
        assert flattened in flat.observation_space
        assert flattened[real].tolist() == observation["input_ids"][real].tolist()
        assert (flattened[~real] == flat.padding_value).all() and flat.padding_value == len(arguments["tokenizer"])
        assert flat.action_masks().tolist() == (info["action_mask"] == 1).tolist()
        action = allowed_action(info["action_mask"], rng)
        observation, reward, terminated, _, info = plain.step(action)
        flattened, same_reward, same_end, _, _ = flat.step(action)
        assert (reward, terminated) == (same_reward, same_end)


def test_flat_tokens_pass_gymnasiums_check() -> None:
    """`check_env` accepts its observations, rewards and flags."""
    check_env(FlatTokens(gym.make("textenv/TajMahal-v0").unwrapped), skip_render_check=True)


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_the_mask_in_the_observation_equals_the_one_in_info(arguments: dict[str, Any], seed: int) -> None:
    """At every step, under the given key; the rest of the observation is unchanged."""
    plain, masked = make(arguments), MaskInObservation(make(arguments), key="mask")
    observation, info = plain.reset(seed=seed)
    wrapped, _ = masked.reset(seed=seed)
    rng = np.random.default_rng(seed)
    terminated = False
    while not terminated:
        assert wrapped in masked.observation_space and sorted(wrapped) == ["attention_mask", "input_ids", "mask"]
        assert wrapped["mask"].tolist() == info["action_mask"].tolist() and wrapped["mask"].dtype == np.int8
        assert wrapped["input_ids"].tolist() == observation["input_ids"].tolist()
        action = allowed_action(info["action_mask"], rng)
        observation, _, terminated, _, info = plain.step(action)
        wrapped, _, same_end, _, _ = masked.step(action)
        assert terminated == same_end
    check_env(MaskInObservation(gym.make("textenv/TajMahal-v0").unwrapped), skip_render_check=True)


def test_the_mask_requires_a_dict_without_its_key() -> None:
    """A flat observation and a key in use are refused."""
    with pytest.raises(ValueError, match="adds 'action_mask' to a Dict.*got MultiDiscrete"):
        MaskInObservation(FlatTokens(gym.make("textenv/Toy-v0")))
    with pytest.raises(ValueError, match="adds 'input_ids'.*another key="):
        MaskInObservation(gym.make("textenv/Toy-v0"), key="input_ids")
