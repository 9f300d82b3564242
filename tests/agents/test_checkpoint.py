"""Saving and loading agents, and the folders that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import AutoTokenizer

from agents import PPO, REINFORCE, ActorCritic
from tests.helpers.agents import FOREVER, agent_of, every_kind, stop_after, task, weights
from tests.helpers.classifiers import word_tokenizer
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, random_reference, sparse, words


@every_kind
@pytest.mark.parametrize("separate_critic", [False, True])
def test_a_loaded_agent_resumes_bit_identically(tmp_path: Path, kind: Any, separate_critic: bool) -> None:
    """Six updates equal three, save, load, and three more: weights, counts and optimizer state."""
    env = task()

    def new() -> Any:
        return kind(random_policy(env, scale=0.1, separate_critic=separate_critic).float(), env, n_episodes=16, seed=0)

    whole = new().learn(FOREVER, callback=stop_after(6))
    new().learn(FOREVER, callback=stop_after(3)).save(tmp_path / "agent")
    resumed = kind.load(tmp_path / "agent", env=env)
    assert resumed.num_updates == 3 and not weights(resumed).equal(weights(whole))
    resumed.learn(FOREVER, callback=stop_after(6), reset_num_timesteps=False)
    assert weights(resumed).equal(weights(whole))
    assert (resumed.num_timesteps, resumed.num_updates) == (whole.num_timesteps, whole.num_updates)

    forgetful = kind.load(tmp_path / "agent", env=env)  # control: without the optimizer state
    forgetful.optimization.optimizer = torch.optim.Adam(
        forgetful.policy.parameters(), lr=forgetful.learning_rate, eps=1e-5
    )
    forgetful.learn(FOREVER, callback=stop_after(6), reset_num_timesteps=False)
    assert not weights(forgetful).equal(weights(whole))


def test_settings_are_saved_and_can_be_overridden(tmp_path: Path) -> None:
    """Every setting is restored; arguments of `load` override it, also the optimizer's learning rate."""
    agent = agent_of(PPO, learning_rate=1e-2, clip_range=None, batch_size=4, gae_lambda=0.5).learn(20)
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path)
    assert {name: getattr(loaded, name) for name in PPO.hyperparameters()} == {
        name: getattr(agent, name) for name in PPO.hyperparameters()
    }
    faster = PPO.load(tmp_path, env=task(), learning_rate=0.5)
    assert {group["lr"] for group in faster.optimization.optimizer.param_groups} == {0.5} and faster.clip_range is None
    json.loads((tmp_path / "agent.json").read_text())


def test_an_agent_without_an_environment_predicts(tmp_path: Path) -> None:
    """`load(folder)` is enough to predict where no token is masked."""
    env = task(reference=random_reference(4, 3, sparse=False))
    agent = agent_of(REINFORCE, env)
    agent.save(tmp_path)
    observation, _ = env.reset(seed=0)
    loaded = REINFORCE.load(tmp_path)
    assert loaded.predict(observation, deterministic=True)[0] == agent.predict(observation, deterministic=True)[0]


def test_a_loaded_agent_can_have_another_seed(tmp_path: Path) -> None:
    """With the saved seed it samples what the saved agent samples, with another seed other completions."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    agent = REINFORCE(random_policy(env), env, seed=0)
    agent.learn(1)
    agent.save(tmp_path)
    same, other = REINFORCE.load(tmp_path, env), REINFORCE.load(tmp_path, env, seed=7)
    expected = agent.collect().input_ids
    assert expected.equal(same.collect().input_ids) and not expected.equal(other.collect().input_ids)


def test_a_folder_without_an_agent_is_refused(tmp_path: Path) -> None:
    """Also a folder that holds only a policy."""
    random_policy(sparse()).save_pretrained(tmp_path / "policy")
    for folder in (tmp_path / "nothing", tmp_path / "policy"):
        with pytest.raises(ValueError, match="no saved agent"):
            PPO.load(folder)


def test_an_agent_of_another_kind_is_refused(tmp_path: Path) -> None:
    """The error names both classes."""
    env = sparse()
    ActorCritic(random_policy(env).float(), env).save(tmp_path)
    with pytest.raises(ValueError, match="holds the agent ActorCritic, not PPO"):
        PPO.load(tmp_path)


def test_the_tokenizer_is_saved_with_the_policy(tmp_path: Path) -> None:
    """Where it can be saved: the folder is a language model for others. A `WordTokenizer` is the task's own."""
    tokenizer = word_tokenizer(eos_token="[END]")
    env = make(words(4) | {"tokenizer": tokenizer, "prompts": ["a b", "c"], "reference": None})
    agent_of(PPO, env).save(tmp_path / "theirs")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.eos_token == "[END]"
    agent_of(PPO).save(tmp_path / "own")
    assert not list((tmp_path / "own").glob("tokenizer*"))


@dataclass(eq=False)
class Weighted(REINFORCE):
    """An agent from outside whose setting is a function."""

    weight: Callable[[float], float] = abs
    note: str = "a:b"


def test_a_function_as_a_setting_of_any_agent_must_be_given_again(tmp_path: Path) -> None:
    """Its name would otherwise become the setting. Control: a text with a colon is no code."""
    agent_of(Weighted, weight=math.sqrt).learn(1).save(tmp_path)
    with pytest.raises(ValueError, match=r"agent\.json names 'math:sqrt', which would import and run code.*weight="):
        Weighted.load(tmp_path)
    loaded = Weighted.load(tmp_path, weight=math.sqrt)
    assert loaded.weight is math.sqrt and loaded.note == "a:b"
