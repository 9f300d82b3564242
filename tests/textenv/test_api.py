"""Gymnasium's API: the checkers of Gymnasium and Stable-Baselines3, spaces, infos, seeds, copies, rendering, resets."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
import pkgutil
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

import textenv
from tests.helpers.tasks import RandomPolicy, allowed_action, assert_same, rollout, stories, words
from textenv import TextEnv, TextMDP, TextVectorEnv

IDS = sorted(name for name in gym.registry if name.startswith("textenv/"))
CASES = [*(name for name in IDS if name != "textenv/Text-v0"), "words", "stories"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Each registered task with the arguments that it requires; Text-v0 twice, on words and on a real model."""
    if request.param == "words":
        return "textenv/Text-v0", words()
    if request.param == "stories":
        return "textenv/Text-v0", stories(request.getfixturevalue("assets"))
    if request.param == "textenv/Sentiment-v0":  # with a model smaller than its default
        return request.param, {"model": request.getfixturevalue("assets") / "stories260k", "max_new_tokens": 4}
    return request.param, {}


@pytest.fixture
def no_warning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every warning is an error, Gymnasium's own logger included."""

    def refuse(message: str, *args: Any, **_: Any) -> None:
        raise AssertionError(f"gymnasium warns: {message % args if args else message}")

    monkeypatch.setattr(gym.logger, "warn", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_some_tasks_are_registered() -> None:
    """TajMahal, Toy, RewardHacking and Text are in Gymnasium's registry."""
    assert {"textenv/TajMahal-v0", "textenv/Toy-v0", "textenv/RewardHacking-v0", "textenv/Text-v0"} <= set(IDS)


@pytest.mark.usefixtures("no_warning")
def test_gymnasium_checker_passes(case: tuple[str, dict[str, Any]]) -> None:
    """Gymnasium's check_env passes without a warning."""
    name, arguments = case
    check_env(gym.make(name, **arguments).unwrapped)


@pytest.mark.usefixtures("no_warning")
def test_gymnasium_checker_passes_in_each_render_mode() -> None:
    """Gymnasium's check_env passes without a warning in each render mode."""
    for mode in (None, "ansi"):
        check_env(gym.make("textenv/TajMahal-v0", render_mode=mode).unwrapped)


@pytest.mark.usefixtures("no_warning")
def test_stable_baselines_checker_passes(case: tuple[str, dict[str, Any]]) -> None:
    """Stable-Baselines3's check_env passes without a warning, on the bare environment and as gym.make wraps it."""
    name, arguments = case
    sb3_check_env(gym.make(name, **arguments).unwrapped, warn=True)
    sb3_check_env(gym.make(name, **arguments), warn=True)


class BadObservation(TextEnv):
    """Returns float64 where the space has int64."""

    def reset(self, **kwargs: Any) -> Any:
        """As `TextEnv.reset`, with an observation of the wrong dtype."""
        observation, info = super().reset(**kwargs)
        return observation | {"input_ids": observation["input_ids"].astype(np.float64)}, info


@pytest.mark.usefixtures("no_warning")
@pytest.mark.parametrize("check", [check_env, sb3_check_env])
def test_checkers_refuse_a_wrong_dtype(check: Any) -> None:
    """Negative control: the checkers refuse an observation of another dtype."""
    with pytest.raises(Exception, match=r"input_ids|observation"):
        check(BadObservation(TextMDP(**words())))


def test_spaces_have_the_documented_form(case: tuple[str, dict[str, Any]]) -> None:
    """Dict(input_ids int64 (L,), attention_mask int8 (L,)) and Discrete(V); prompts padded on the left."""
    name, arguments = case
    env = gym.make(name, **arguments)
    mdp = env.unwrapped.mdp
    length = mdp.prompt_width + mdp.max_new_tokens
    space = env.observation_space
    assert set(space.spaces) == {"input_ids", "attention_mask"}
    assert (space["input_ids"].shape, space["input_ids"].dtype) == ((length,), np.int64)
    assert (space["attention_mask"].shape, space["attention_mask"].dtype) == ((length,), np.int8)
    assert isinstance(env.action_space, gym.spaces.Discrete) and env.action_space.n == len(mdp.tokenizer)
    for index, prompt in enumerate(env.unwrapped.prompts):
        observation, _ = env.reset(options={"prompt": index})
        ids = mdp.tokenizer.encode(prompt)
        width = mdp.prompt_width
        assert observation["input_ids"][width - len(ids) : width].tolist() == ids
        assert observation["attention_mask"].tolist() == (
            [0] * (width - len(ids)) + [1] * len(ids) + [0] * mdp.max_new_tokens
        )


def test_info_has_the_documented_keys(case: tuple[str, dict[str, Any]]) -> None:
    """action_mask always; ref_log_prob and reward_terms on each step; final fields on the last; kl if pi is bound."""
    name, arguments = case
    for policy in (None, "bound"):
        env = gym.make(name, **arguments)
        if policy:
            env.unwrapped.bind_policy(RandomPolicy(int(env.action_space.n)))
        rng = np.random.default_rng(0)
        _, info = env.reset(seed=0)
        assert set(info) == {"action_mask"}
        terminated, rewards, log_probs = False, 0.0, []
        while not terminated:
            assert info["action_mask"].dtype == np.int8 and info["action_mask"].shape == (env.action_space.n,)
            masks = env.unwrapped.action_masks()
            assert masks.dtype == np.bool_ and (masks == info["action_mask"]).all()
            observation, reward, terminated, truncated, info = env.step(allowed_action(info["action_mask"], rng))
            assert env.observation_space.contains(observation)
            assert isinstance(reward, float) and isinstance(terminated, bool) and truncated is False
            assert all(type(value) is float for value in info["reward_terms"].values())
            assert sum(info["reward_terms"].values()) == pytest.approx(reward, abs=1e-12)
            rewards += reward
            log_probs.append(info["ref_log_prob"])
            last = {"prompt", "completion", "score", "finish_reason"} | ({"kl"} if policy else set())
            extra = set(info) - {"action_mask", "ref_log_prob", "reward_terms"}
            assert extra >= last if terminated else not extra
        assert info["prompt"] in env.unwrapped.prompts and isinstance(info["completion"], str)
        assert info["finish_reason"] in ("stop", "length")
        assert info["reward_terms"]["score"] == info["score"]
        beta = env.unwrapped.mdp.kl_coef
        expected = info["score"] - beta * info["kl"] if policy else info["score"] + beta * sum(log_probs)
        assert rewards == pytest.approx(expected, abs=1e-5)
        assert not hasattr(env.unwrapped, "compute_reward")


@pytest.mark.parametrize("num_envs", [1, 3])
def test_make_vec_returns_a_text_vector_env(case: tuple[str, dict[str, Any]], num_envs: int) -> None:
    """gym.make_vec returns a TextVectorEnv, not a loop; its spaces contain what reset and step return."""
    name, arguments = case
    envs = gym.make_vec(name, num_envs=num_envs, **arguments)
    assert isinstance(envs, TextVectorEnv)
    assert envs.single_observation_space == gym.make(name, **arguments).observation_space
    assert envs.single_action_space == gym.make(name, **arguments).action_space
    observation, info = envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(8):
        assert envs.observation_space.contains(observation)
        assert info["action_mask"].dtype == np.int8 and info["action_mask"].shape == (
            num_envs,
            len(info["action_mask"][0]),
        )
        assert (envs.action_masks() == info["action_mask"]).all() and envs.action_masks().dtype == np.bool_
        actions = envs.action_space.sample()
        assert envs.action_space.contains(actions) and info["action_mask"][np.arange(num_envs), actions].all()
        observation, rewards, terminated, truncated, info = envs.step(actions)
        assert rewards.shape == terminated.shape == truncated.shape == (num_envs,)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        assert not truncated.any()


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_metadata_has_the_autoreset_mode(mode: AutoresetMode) -> None:
    """The mode, passed as enum or as string, is in the metadata, where agent libraries read it."""
    for argument in (mode, mode.value):
        envs = gym.make_vec("textenv/Toy-v0", num_envs=2, autoreset_mode=argument)
        assert envs.metadata["autoreset_mode"] is mode
    assert gym.make_vec("textenv/Toy-v0", num_envs=2).metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP


def test_same_seed_same_trajectory(case: tuple[str, dict[str, Any]]) -> None:
    """The same seed and actions give the same trajectory, in two environments and twice in one."""
    name, arguments = case
    env = gym.make(name, **arguments)
    first = rollout(env, np.random.default_rng(1), 8, seed=5)
    assert_same(first, rollout(env, np.random.default_rng(1), 8, seed=5), atol=1e-5)
    assert_same(first, rollout(gym.make(name, **arguments), np.random.default_rng(1), 8, seed=5), atol=1e-5)


def test_another_seed_draws_other_prompts() -> None:
    """Negative control: another seed gives another order of prompts; each prompt is drawn about equally often."""
    env = gym.make("textenv/TajMahal-v0")

    def drawn(seed: int, count: int) -> list[int]:
        starts = [env.reset(seed=seed if i == 0 else None)[0]["input_ids"].tobytes() for i in range(count)]
        return [prompts.index(start) for start in starts]

    prompts = [env.reset(options={"prompt": i})[0]["input_ids"].tobytes() for i in range(18)]
    assert drawn(0, 8) == drawn(0, 8) != drawn(1, 8)
    counts = np.bincount(drawn(0, 1800), minlength=18)
    assert ((counts - 100) ** 2 / 100).sum() < 40.8  # chi-squared, 17 degrees of freedom, p = 0.001


@pytest.mark.parametrize("make", [gym.make, gym.make_vec], ids=["single", "batched"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_continues_like_the_original(case: tuple[str, dict[str, Any]], copied: Any, make: Any) -> None:
    """A pickled or deep-copied environment steps and resets like the original, and does not change it."""
    name, arguments = case

    def last_allowed(env: Any) -> Any:
        actions = len(env.action_space.mask.T) - 1 - env.action_space.mask[..., ::-1].argmax(axis=-1)
        return actions if make is gym.make_vec else int(actions)

    original, twin = make(name, **arguments), make(name, **arguments)
    for env in (original, twin):
        env.reset(seed=3)
        env.step(last_allowed(env))
    the_copy = copied(original)
    results = [[env.step(last_allowed(env)), env.reset()] for env in (the_copy, original, twin)]
    assert_same(results[0], results[1], atol=1e-5)
    assert_same(results[1], results[2], atol=1e-5)


def test_the_core_imports_no_torch() -> None:
    """Importing what needs no model, and stepping the tasks without one, imports neither torch nor transformers."""
    code = """
import sys, gymnasium as gym, textenv, textenv.data, textenv.exact, textenv.references, textenv.rewards
import textenv.shaping, textenv.testing, textenv.wrappers
for task in ("TajMahal-v0", "Toy-v0", "RewardHacking-v0"):
    env = gym.make(f"textenv/{task}")
    env.reset(seed=0); env.step(env.action_space.sample())
env = gym.make("textenv/TajMahal-v0")
textenv.testing.play(env, "where is the taj mahal", "it is in agra")
envs = gym.make_vec("textenv/TajMahal-v0", num_envs=2)
envs.reset(seed=0); envs.step(envs.action_space.sample())
textenv.exact.solve(env)
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_render_shows_each_token_with_its_reward(capsys: pytest.CaptureFixture[str]) -> None:
    """render() returns the prompt and each token's reward; "human" prints the same lines, each token once."""
    shown, actions = [], None
    for mode in ("ansi", "human"):
        env = gym.make("textenv/Toy-v0", render_mode=mode)
        env.reset(seed=0, options={"prompt": 1, "completion": "a"})
        rewards = [env.step(action)[1] for action in (2, 0)]
        actions = env.unwrapped.mdp.tokenizer.convert_ids_to_tokens([2, 0])
        shown.append(env.render() if mode == "ansi" else capsys.readouterr().out)
    text = shown[0]
    assert "prompt: b" in text.splitlines()[0]
    lines = [line.split() for line in text.splitlines()[1:]]
    assert lines[0] == ["a"]  # a token of reset has no reward
    assert [line[:3] for line in lines[1:]] == [
        [token, f"{reward:+.4f}", "="] for token, reward in zip(actions, rewards, strict=True)
    ]
    assert [line for line in shown[1].splitlines() if not line.startswith("next: ")] == [
        line for line in text.splitlines() if not line.startswith("next: ")
    ]
    assert shown[1].count("next: ") == 2  # before each step; none after EOS
    assert gym.make("textenv/Toy-v0").unwrapped.render() is None
    envs = gym.make_vec("textenv/Toy-v0", num_envs=2, render_mode="ansi")
    envs.reset(options={"prompt": 1, "completion": "a"})
    assert all("b" in row and "a" in row for row in envs.render())


@pytest.mark.parametrize("form", ["index", "text", "ids"])
@pytest.mark.parametrize("completion_form", ["text", "ids"])
@pytest.mark.parametrize("name", ["textenv/Toy-v0", "stories"])
def test_reset_rebuilds_any_state(name: str, form: str, completion_form: str, request: pytest.FixtureRequest) -> None:
    """reset to (prompt, completion) gives the state that stepping reaches: same observation, mask and next step."""
    if name == "stories":
        name, arguments = "textenv/Text-v0", stories(request.getfixturevalue("assets"))
    else:
        arguments = {"num_prompts": 7, "vocab_size": 4}
    stepped, restarted = gym.make(name, **arguments), gym.make(name, **arguments)
    tokenizer = stepped.unwrapped.mdp.tokenizer
    tokens = tokenizer.encode("big dog" if "stories" in str(arguments.get("reference")) else "b c")
    tokens = [token for token in tokens if token not in stepped.unwrapped.mdp.eos_token_ids][:3]
    prompt = stepped.unwrapped.prompts[1]
    start = {"index": 1, "text": prompt, "ids": tokenizer.encode(prompt)}[form]
    completion: Any = tokenizer.decode(tokens) if completion_form == "text" else tokens
    if completion_form == "text" and tokenizer.encode(completion, add_special_tokens=False) != tokens:
        pytest.skip("the tokenizer does not encode this completion's text as the same tokens")
    stepped.reset(options={"prompt": 1})
    for token in tokens:
        observation, _, _, _, info = stepped.step(token)
    same_observation, same_info = restarted.reset(options={"prompt": start, "completion": completion})
    assert_same(observation, same_observation)
    assert_same(info["action_mask"], same_info["action_mask"])
    assert_same(stepped.step(2), restarted.step(2), atol=1e-5)
    other, _ = restarted.reset(options={"prompt": 1, "completion": tokens[:-1]})  # negative control: a shorter one
    assert (other["attention_mask"] != observation["attention_mask"]).any()


def test_reset_takes_a_prompt_that_is_not_in_the_list() -> None:
    """A new prompt, as text or as ids, starts the same episode; the info has its text."""
    for prompt in ("b c", [2, 3]):
        env = gym.make("textenv/Text-v0", **words(max_new_tokens=1))
        observation, _ = env.reset(options={"prompt": prompt})
        assert observation["input_ids"][1:3].tolist() == [2, 3] and observation["attention_mask"].tolist() == [
            0,
            1,
            1,
            0,
        ]
        assert env.step(1)[-1]["prompt"] == "b c"


MODULES = ["textenv", *(found.name for found in pkgutil.walk_packages(textenv.__path__, "textenv."))]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module: str) -> None:
    """Every example in a docstring gives the result beside it."""
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_every_task_shows_an_example() -> None:
    """Each task's page contains an example that runs, and every section of a task's page."""
    pages = [importlib.import_module(name) for name in MODULES if name.startswith("textenv.tasks.")]
    assert pages
    for page in pages:
        assert ">>> " in (page.__doc__ or "")
        sections = ["Description", "Observation", "Action", "Rewards", "Start", "End", "Arguments", "Version"]
        assert all(f"\n{section}" in (page.__doc__ or "") for section in sections), page.__name__


def test_stable_baselines3_makes_envs_by_id() -> None:
    """SB3 tries an unknown render mode, then makes the environment without one; it trains, on one and on four."""
    for env in ("textenv/Toy-v0", make_vec_env("textenv/Toy-v0", n_envs=4)):
        learner = SB3PPO("MultiInputPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0)
        assert learner.learn(64).num_timesteps >= 64
