"""Wrappers: flat observations, the mask in the observation, whole completions as actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import allowed_action, make, stories, tasks, words
from textenv import InvalidAction, exact, get_mdp
from textenv.testing import play
from textenv.wrappers import CompletionAction, FlatTokens, MaskInObservation


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


def test_a_completion_requires_an_episode() -> None:
    """Before the first reset and after the end, `step` raises ResetNeeded."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0").unwrapped)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("agra")
    env.reset(options={"prompt": "where is the taj mahal located"})
    env.step("agra")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step("agra")


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


def test_sampled_completions_of_a_real_tokenizer_are_accepted(assets: Path) -> None:
    """Random tokens may become more when decoded and encoded again; a sample nevertheless fits the limit."""
    env = CompletionAction(make(stories(assets, max_new_tokens=6)))
    mdp = env.text_env.mdp
    rng = np.random.default_rng(0)
    encoded_again = [mdp.encode_completion(mdp.decode(rng.integers(3, mdp.vocab_size, 6))) for _ in range(50)]
    assert any(len(tokens) > 6 for tokens in encoded_again)  # control
    env.action_space.seed(0)
    lengths = set()
    for seed in range(50):
        env.reset(seed=seed)
        _, _, terminated, _, info = env.step(env.action_space.sample())
        assert terminated
        lengths.add(len(info["token_ids"]))
    assert 6 in lengths


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


class DoubleReward(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper that a user wrote, which is none of Gymnasium's."""

    def step(self, action: Any) -> Any:
        """Doubles the reward."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 2 * float(reward), terminated, truncated, info


def time_limit(env: Any) -> Any:
    """Truncates after two tokens."""
    return gym.wrappers.TimeLimit(env, max_episode_steps=2)


CHANGES = [CompletionAction, FlatTokens, MaskInObservation, DoubleReward, gym.wrappers.NormalizeReward, time_limit]


@pytest.mark.parametrize("wrap", CHANGES)
def test_wrappers_that_change_the_mdp_are_refused(wrap: Any) -> None:
    """The oracle and agents use the MDP without the wrapper; wrappers that only record are accepted."""
    env = wrap(gym.make("textenv/Toy-v0"))
    with pytest.raises(TypeError, match=f"{type(env).__name__} may change observations, actions or rewards"):
        exact.solve(env)
    assert get_mdp(gym.wrappers.RecordEpisodeStatistics(gym.make("textenv/Toy-v0")))


def test_vector_wrappers_are_refused_too() -> None:
    """Gymnasium's vector wrappers that change rewards; those that only record are accepted."""
    envs = gym.make_vec("textenv/Toy-v0", num_envs=2)
    with pytest.raises(TypeError, match="NormalizeReward may change"):
        get_mdp(gym.wrappers.vector.NormalizeReward(envs))
    assert get_mdp(gym.wrappers.vector.RecordEpisodeStatistics(envs))


def test_the_mask_requires_a_dict_without_its_key() -> None:
    """A flat observation and a key in use are refused."""
    with pytest.raises(ValueError, match="adds 'action_mask' to a Dict.*got MultiDiscrete"):
        MaskInObservation(FlatTokens(gym.make("textenv/Toy-v0")))
    with pytest.raises(ValueError, match="adds 'input_ids'.*another key="):
        MaskInObservation(gym.make("textenv/Toy-v0"), key="input_ids")


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


@pytest.mark.parametrize("wrapper", [FlatTokens, CompletionAction])
def test_other_environments_are_refused(wrapper: Any) -> None:
    """The wrappers require a text environment."""
    with pytest.raises(TypeError, match=r"single environment.*got CartPoleEnv"):
        wrapper(gym.make("CartPole-v1"))


@pytest.mark.parametrize("action", [5, None, b"it is", ("it is",), [1, 2]])
def test_an_action_that_is_not_a_string_is_refused(action: Any) -> None:
    """The error shows the action, and the state is unchanged."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    env.reset(options={"prompt": "where is the taj mahal"})
    with pytest.raises(InvalidAction, match="An action must be a whole completion, a string, got"):
        env.step(action)
    assert env.step("paris")[2]


def test_wrappers_that_do_not_fit_on_each_other_are_refused() -> None:
    """Where the inner wrapper removed what the outer one changes, or added what the outer one would drop."""
    toy = gym.make("textenv/Toy-v0")
    for inner in (CompletionAction(toy), FlatTokens(toy), MaskInObservation(toy)):
        with pytest.raises(ValueError, match="FlatTokens needs a Dict of input_ids and attention_mask"):
            FlatTokens(inner)
    with pytest.raises(ValueError, match="CompletionAction needs an environment whose actions are tokens"):
        CompletionAction(CompletionAction(toy))


def test_a_sync_vector_env_is_refused_with_advice() -> None:
    """`gym.make_vec` with a vectorization_mode makes Gymnasium's own vector environment."""
    with pytest.raises(TypeError, match="gym.make_vec without a vectorization_mode.*got SyncVectorEnv"):
        exact.solve(gym.make_vec("textenv/Toy-v0", num_envs=2, vectorization_mode="sync"))
