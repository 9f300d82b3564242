"""Other faces of the environment: flat observations, whole answers as actions."""

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
def test_flat_tokens_lose_nothing(arguments: dict[str, Any], seed: int) -> None:
    """Step by step the flat observation holds the tokens and the blanks of the two arrays, and the same masks."""
    plain, flat = make(arguments), FlatTokens(make(arguments))
    observation, info = plain.reset(seed=seed)
    flattened, _ = flat.reset(seed=seed)
    rng = np.random.default_rng(seed)
    terminated = False
    while not terminated:
        real = observation["attention_mask"] == 1
        assert flattened in flat.observation_space
        assert flattened[real].tolist() == observation["input_ids"][real].tolist()
        assert (flattened[~real] == flat.blank).all() and flat.blank == len(arguments["tokenizer"])
        assert flat.action_masks().tolist() == (info["action_mask"] == 1).tolist()
        action = allowed_action(info["action_mask"], rng)
        observation, reward, terminated, _, info = plain.step(action)
        flattened, same_reward, same_end, _, _ = flat.step(action)
        assert (reward, terminated) == (same_reward, same_end)


def test_flat_tokens_pass_gymnasiums_check() -> None:
    """`check_env` steps it and finds observations, rewards and flags in order."""
    check_env(FlatTokens(gym.make("textenv/TajMahal-v0").unwrapped), skip_render_check=True)


def test_an_answer_needs_an_episode() -> None:
    """Before the first reset and after the end, `step` says what is missing."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0").unwrapped)
    with pytest.raises(gym.error.ResetNeeded):
        env.step("agra")
    env.reset(options={"prompt": "where is the taj mahal located"})
    env.step("agra")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\)"):
        env.step("agra")


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_the_mask_in_the_observation_is_that_of_the_info(arguments: dict[str, Any], seed: int) -> None:
    """At every step, under the name that was asked for; the rest of the observation is as before."""
    plain, masked = make(arguments), MaskInObservation(make(arguments), key="mask")
    observation, info = plain.reset(seed=seed)
    seen, _ = masked.reset(seed=seed)
    rng = np.random.default_rng(seed)
    terminated = False
    while not terminated:
        assert seen in masked.observation_space and sorted(seen) == ["attention_mask", "input_ids", "mask"]
        assert seen["mask"].tolist() == info["action_mask"].tolist() and seen["mask"].dtype == np.int8
        assert seen["input_ids"].tolist() == observation["input_ids"].tolist()
        action = allowed_action(info["action_mask"], rng)
        observation, _, terminated, _, info = plain.step(action)
        seen, _, same_end, _, _ = masked.step(action)
        assert terminated == same_end
    check_env(MaskInObservation(gym.make("textenv/TajMahal-v0").unwrapped), skip_render_check=True)


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_an_answer_is_paid_what_its_tokens_are(arguments: dict[str, Any], seed: int) -> None:
    """Any answer that the space samples: the sum of the rewards of the same answer played token by token."""
    env = CompletionAction(make(arguments))
    env.action_space.seed(seed)
    prompt, _ = env.reset(seed=seed)
    answer = env.action_space.sample()
    assert answer in env.action_space and prompt in env.observation_space
    text, reward, terminated, truncated, info = env.step(answer)
    assert terminated and not truncated and text in env.observation_space
    episode = play(make(arguments), prompt, info["token_ids"])
    assert reward == pytest.approx(episode.rewards.sum()) and info["token_rewards"] == pytest.approx(episode.rewards)
    assert (info["completion"], info["score"]) == (episode.text, episode.score)
    assert text == f"{prompt} {episode.text}".strip()


def test_text_actions_pass_gymnasiums_check() -> None:
    """`check_env` samples before it resets, so a sample must do for any prompt; between episodes too."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0").unwrapped)
    check_env(env, skip_render_check=True)
    for seed in range(50):
        answer = env.action_space.sample()
        env.reset(seed=seed)
        assert env.step(answer)[2]


def test_sampled_answers_of_a_real_tokenizer_are_taken(assets: Path) -> None:
    """Random tokens, decoded and encoded again, may be more than they were: what is sampled fits all the same."""
    env = CompletionAction(make(stories(assets, max_new_tokens=6)))
    mdp = env.text_env.mdp
    rng = np.random.default_rng(0)
    read_back = [mdp.encode_completion(mdp.decode(rng.integers(3, mdp.vocab_size, 6))) for _ in range(50)]
    assert any(len(tokens) > 6 for tokens in read_back)  # control
    env.action_space.seed(0)
    lengths = set()
    for seed in range(50):
        env.reset(seed=seed)
        _, _, terminated, _, info = env.step(env.action_space.sample())
        assert terminated
        lengths.add(len(info["token_ids"]))
    assert 6 in lengths


def test_text_actions_in_processes_of_their_own() -> None:
    """`AsyncVectorEnv` takes strings without shared memory."""
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


def test_a_time_limit_cuts_an_answer() -> None:
    """Nothing is written after a truncation; the next answer needs a reset."""
    env = CompletionAction(gym.wrappers.TimeLimit(gym.make("textenv/Toy-v0").unwrapped, max_episode_steps=2))
    env.reset(options={"prompt": "a"})
    _, _, terminated, truncated, info = env.step("b c b")
    assert truncated and not terminated and len(info["token_rewards"]) == len(info["token_ids"]) == 2
    with pytest.raises(gym.error.ResetNeeded, match="An answer ends the episode"):
        env.step("c")
    env.reset(options={"prompt": "a"})
    assert env.step("c")[2]


class PaysDouble(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper of a user's, of no kind that Gymnasium names."""

    def step(self, action: Any) -> Any:
        """Twice the reward."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 2 * float(reward), terminated, truncated, info


def time_limit(env: Any) -> Any:
    """Cuts after two tokens."""
    return gym.wrappers.TimeLimit(env, max_episode_steps=2)


CHANGES = [CompletionAction, FlatTokens, MaskInObservation, PaysDouble, gym.wrappers.NormalizeReward, time_limit]


@pytest.mark.parametrize("wrap", CHANGES)
def test_oracle_and_agents_refuse_other_faces(wrap: Any) -> None:
    """They read the process and would not see what a wrapper makes of it; what only watches is let through."""
    env = wrap(gym.make("textenv/Toy-v0"))
    with pytest.raises(TypeError, match=f"{type(env).__name__} may change what the environment says"):
        exact.solve(env)
    assert get_mdp(gym.wrappers.RecordEpisodeStatistics(gym.make("textenv/Toy-v0")))


def test_batched_faces_are_refused_too() -> None:
    """Gymnasium's vector wrappers."""
    envs = gym.make_vec("textenv/Toy-v0", num_envs=2)
    with pytest.raises(TypeError, match="NormalizeReward may change"):
        get_mdp(gym.wrappers.vector.NormalizeReward(envs))
    assert get_mdp(gym.wrappers.vector.RecordEpisodeStatistics(envs))


def test_a_mask_needs_a_place() -> None:
    """Not in a flat observation, and not where something else stands."""
    with pytest.raises(ValueError, match="adds 'action_mask' to a Dict.*got MultiDiscrete"):
        MaskInObservation(FlatTokens(gym.make("textenv/Toy-v0")))
    with pytest.raises(ValueError, match="adds 'input_ids'.*another key="):
        MaskInObservation(gym.make("textenv/Toy-v0"), key="input_ids")


def test_a_bound_policy_is_paid_too() -> None:
    """With a bound policy the whole r_t is summed, KL and all."""

    def uniform(input_ids: Any, attention_mask: Any) -> np.ndarray:
        return np.zeros((len(input_ids), 6))

    env = CompletionAction(gym.make("textenv/Toy-v0", policy=uniform, kl_coef=0.5))
    env.reset(options={"prompt": "a"})
    _, reward, _, _, info = env.step("b c")
    assert reward == pytest.approx(info["score"] - 0.5 * info["kl"]) and info["kl"] != 0


def test_a_begun_answer_can_be_finished() -> None:
    """From a state in the middle of an answer the action is the rest of it."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    text, _ = env.reset(options={"prompt": "where is the taj mahal", "completion": "it is"})
    assert text == "where is the taj mahal it is"
    text, _, terminated, _, info = env.step("in agra")
    assert terminated and info["completion"] == "it is in agra" and info["score"] == 1.0


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ("agra in", InvalidAction, "'in'.*masked after 'agra'"),
        ("", InvalidAction, "'<eos>'.*masked after ''"),
        ("it is in " + "agra " * 20, ValueError, "must be a whole answer.*12 tokens"),
        ("it is in agar", ValueError, "Did you mean 'agra'"),
    ],
)
def test_an_answer_that_is_refused_changes_nothing(answer: str, error: Any, message: str) -> None:
    """The error says what is wrong, and another answer can be given to the same prompt."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    env.reset(options={"prompt": "where is the taj mahal"})
    with pytest.raises(error, match=message):
        env.step(answer)
    text, *_, info = env.step("it is in agra")
    assert text == "where is the taj mahal it is in agra" and info["score"] == 1.0


def test_without_an_end_token_an_answer_fills_its_room() -> None:
    """Where no token ends a text, only an answer of full length is whole."""
    env = CompletionAction(make(words(eos_token_id=[], max_new_tokens=2)))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="takes all 2 tokens that are left"):
        env.step("a")
    assert env.step("a b")[4]["finish_reason"] == "length"


@pytest.mark.parametrize("wrapper", [FlatTokens, CompletionAction])
def test_other_environments_are_refused(wrapper: Any) -> None:
    """Wrappers of texts need a text environment."""
    with pytest.raises(TypeError, match=r"single environment.*got CartPoleEnv"):
        wrapper(gym.make("CartPole-v1"))


@pytest.mark.parametrize("action", [5, None, b"it is", ("it is",), [1, 2]])
def test_an_action_that_is_no_string_is_refused(action: Any) -> None:
    """In a word, and nothing is written."""
    env = CompletionAction(gym.make("textenv/TajMahal-v0"))
    env.reset(options={"prompt": "where is the taj mahal"})
    with pytest.raises(InvalidAction, match="An action is a whole answer, a string, got"):
        env.step(action)
    assert env.step("paris")[2]


def test_faces_that_do_not_fit_on_each_other_are_refused() -> None:
    """Where one would not find what it changes, or would drop what another added."""
    toy = gym.make("textenv/Toy-v0")
    for inner in (CompletionAction(toy), FlatTokens(toy), MaskInObservation(toy)):
        with pytest.raises(ValueError, match="FlatTokens makes one row of input_ids and attention_mask"):
            FlatTokens(inner)
    with pytest.raises(ValueError, match="CompletionAction writes token by token"):
        CompletionAction(CompletionAction(toy))


def test_a_loop_over_environments_is_told_what_to_use() -> None:
    """`gym.make_vec` with a vectorization_mode makes Gymnasium's own."""
    with pytest.raises(TypeError, match="gym.make_vec without a vectorization_mode.*got SyncVectorEnv"):
        exact.solve(gym.make_vec("textenv/Toy-v0", num_envs=2, vectorization_mode="sync"))
