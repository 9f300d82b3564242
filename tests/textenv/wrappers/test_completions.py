"""Whole completions as actions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import make, tasks, words
from textenv import InvalidAction
from textenv.testing import play
from textenv.wrappers import CompletionAction


def test_a_completion_requires_an_episode() -> None:
    """Before the first reset and after the end, `step` raises ResetNeeded."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0").unwrapped)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("agra")
    env.reset(options={"prompt": "where is the taj mahal located"})
    env.step("agra")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step("agra")


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_the_reward_of_a_completion_is_the_sum_over_its_tokens(arguments: dict[str, Any], seed: int) -> None:
    """For any completion that the space samples: the sum of its rewards when it is played token by token."""
    env = CompletionAction(make(arguments))
    env.action_space.seed(seed)
    prompt, _ = env.reset(seed=seed)
    completion = env.action_space.sample()
    assert completion in env.action_space and prompt in env.observation_space
    text, reward, terminated, truncated, info = env.step(completion)
    assert terminated and not truncated and text in env.observation_space
    episode = play(make(arguments), prompt, info["token_ids"])
    assert reward == pytest.approx(episode.rewards.sum()) and info["token_rewards"] == pytest.approx(episode.rewards)
    assert (info["completion"], info["score"]) == (episode.completion, episode.score)
    assert text == f"{prompt} {episode.completion}".strip()


def test_completion_actions_pass_gymnasiums_check() -> None:
    """`check_env` samples before it resets, so a sample must be valid for any prompt; between episodes too."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0").unwrapped)
    check_env(env, skip_render_check=True)
    for seed in range(50):
        completion = env.action_space.sample()
        env.reset(seed=seed)
        assert env.step(completion)[2]


def test_completion_actions_in_an_async_vector_env() -> None:
    """`AsyncVectorEnv` accepts strings without shared memory."""
    make_env = lambda: CompletionAction(gym.make("textenv/TajMahal-v0"))  # noqa: E731
    envs = gym.vector.AsyncVectorEnv([make_env, make_env], shared_memory=False)
    try:
        prompts, _ = envs.reset(seed=0, options={"prompt": "where is the taj mahal"})
        assert list(prompts) == ["where is the taj mahal"] * 2
        texts, rewards, *_ = envs.step(("it is in agra", "paris"))
        assert list(texts) == ["where is the taj mahal it is in agra", "where is the taj mahal paris"]
        assert rewards[0] > rewards[1]
    finally:
        envs.close()


def test_a_time_limit_truncates_a_completion() -> None:
    """No token follows the truncation; the next completion requires a reset."""
    env = CompletionAction(gym.wrappers.TimeLimit(gym.make("textenv/Toy-v0").unwrapped, max_episode_steps=2))
    env.reset(options={"prompt": "a"})
    _, _, terminated, truncated, info = env.step("b c b")
    assert truncated and not terminated and len(info["token_rewards"]) == len(info["token_ids"]) == 2
    with pytest.raises(gym.error.ResetNeeded, match="A completion ends the episode"):
        env.step("c")
    env.reset(options={"prompt": "a"})
    assert env.step("c")[2]


def test_with_a_bound_policy_the_kl_is_included() -> None:
    """With a bound policy the reward is the sum of the whole r_t, KL included."""

    def uniform(input_ids: Any, attention_mask: Any) -> np.ndarray:
        return np.zeros((len(input_ids), 6))

    env = CompletionAction(gym.make("textenv/Toy-v0", policy=uniform, kl_coef=0.5))
    env.reset(options={"prompt": "a"})
    _, reward, _, _, info = env.step("b c")
    assert reward == pytest.approx(info["score"] - 0.5 * info["kl"]) and info["kl"] != 0


def test_a_started_completion_can_be_finished() -> None:
    """From a state in the middle of a completion the action is the rest of it."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    text, _ = env.reset(options={"prompt": "where is the taj mahal", "completion": "it is"})
    assert text == "where is the taj mahal it is"
    text, _, terminated, _, info = env.step("in agra")
    assert terminated and info["completion"] == "it is in agra" and info["score"] == 1.0


@pytest.mark.parametrize(
    ("completion", "error", "message"),
    [
        ("agra in", InvalidAction, "'in'.*masked after 'agra'"),
        ("", InvalidAction, "'<eos>'.*masked after ''"),
        ("it is in " + "agra " * 20, ValueError, "must be a whole completion.*12 tokens"),
        ("it is in agar", ValueError, "Did you mean 'agra'"),
    ],
)
def test_a_refused_completion_changes_nothing(completion: str, error: Any, message: str) -> None:
    """The error names the reason, and another completion of the same prompt is accepted."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    env.reset(options={"prompt": "where is the taj mahal"})
    with pytest.raises(error, match=message):
        env.step(completion)
    text, *_, info = env.step("it is in agra")
    assert text == "where is the taj mahal it is in agra" and info["score"] == 1.0


def test_without_an_end_token_a_completion_has_full_length() -> None:
    """Where there is no end token, only a completion of full length is accepted."""
    env = CompletionAction(make(words(eos_token_id=[], max_new_tokens=2)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="has all 2 tokens that are left"):
        env.step("a")
    assert env.step("a b")[4]["finish_reason"] == "length"


@pytest.mark.parametrize("action", [5, None, b"it is", ("it is",), [1, 2]])
def test_an_action_that_is_not_a_string_is_refused(action: Any) -> None:
    """The error shows the action, and the state is unchanged."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    env.reset(options={"prompt": "where is the taj mahal"})
    with pytest.raises(InvalidAction, match="An action must be a whole completion, a string, got"):
        env.step(action)
    assert env.step("paris")[2]
