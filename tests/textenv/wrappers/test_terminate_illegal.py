"""TerminateIllegal: a masked action ends the episode; every legal one is as without the wrapper."""

from __future__ import annotations

import copy
import pickle
import re
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from agents import PPO, TransformerPolicy
from agents.sampling import collect
from tests.helpers.envs import MODES, compare_trajectories, masked_info
from tests.helpers.fuzzed_tasks import PureLetters
from tests.helpers.plain_env import PlainEnv
from tests.helpers.tasks import (
    RandomPolicy,
    assert_same,
    forgetful,
    golden,
    make,
    random_reference,
    rollout,
    tasks,
    toy,
    words,
)
from textenv import InvalidAction, TextEnv, TextMDP, TextVectorEnv, exact
from textenv.references import TableReference
from textenv.stepping.tabulated import TabulatedBackend
from textenv.testing import play
from textenv.wrappers import (
    CompletionAction,
    FlatTokens,
    MaskInObservation,
    TerminateIllegal,
    VectorTerminateIllegal,
)

SPARSE = words(4, reference=random_reference(4, 3, sparse=True))
MASKED = words(4, reference=TableReference(np.array([-np.inf, np.log(0.5), np.log(0.5), -np.inf])))  # in every state
TAJ_MAHAL = "textenv/TajMahal-v0"
EOS = 0  # masked at the start of each completion of TajMahal


# -- legal actions -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99))
def test_legal_actions_are_those_of_the_wrapped_environment(arguments: dict[str, Any], seed: int) -> None:
    """Step for step: observations, rewards, flags, infos, and the prompts that follow."""
    left, right = make(arguments), TerminateIllegal(make(arguments), -3.0)
    assert_same(*(rollout(env, np.random.default_rng(seed), 12, seed=seed) for env in (left, right)))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99), bound=st.booleans())
def test_legal_actions_are_those_of_the_wrapped_batch(
    mode: AutoresetMode, arguments: dict[str, Any], seed: int, bound: bool
) -> None:
    """In each autoreset mode."""
    policy = RandomPolicy(len(arguments["tokenizer"])) if bound else None
    pair: list[Any] = [TextVectorEnv(TextMDP(**arguments), 3, autoreset_mode=mode, policy=policy) for _ in range(2)]
    pair[1] = TerminateIllegal(pair[1], -3.0)
    assert compare_trajectories(pair, seed, steps=12) > 0


def test_any_start_as_the_wrapped_environment() -> None:
    """Seeds and options of `reset`, and what it refuses."""
    plain, wrapped = gym.make(TAJ_MAHAL), TerminateIllegal(gym.make(TAJ_MAHAL), -1.0)
    start = {"prompt": "where is the taj mahal", "completion": "it is"}
    for arguments in ({"seed": 3}, {}, {"options": start}):
        assert_same(plain.reset(**arguments), wrapped.reset(**arguments))
    with pytest.raises(ValueError, match="'mahl' is not in the vocabulary"):
        wrapped.reset(options={"prompt": "where is the taj mahl"})
    assert wrapped.step(EOS)[2:4] == (True, False)


# -- masked actions ----------------------------------------------------------------------------------------------------


def states_below(env: Any, prompt: int, prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """The completions so far of every state below one, by single steps of the environment without the wrapper."""
    found = [prefix]
    _, info = env.reset(options={"prompt": prompt, "completion": list(prefix)})
    for token in np.flatnonzero(info["action_mask"]).tolist():
        env.reset(options={"prompt": prompt, "completion": list(prefix)})
        if not env.step(token)[2]:
            found += states_below(env, prompt, (*prefix, token))
    return found


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("seed", [0, 3, 5])
def test_every_action_in_every_state(seed: int, bound: bool) -> None:
    """By brute force: where the environment raises, the episode ends as documented; elsewhere they are equal."""
    arguments = words(4, reference=random_reference(4, seed, sparse=True), gold_reward=golden)
    policy = RandomPolicy(4) if bound else None
    plain, wrapped = make(arguments, policy=policy), TerminateIllegal(make(arguments, policy=policy), -1.5)
    count = {True: 0, False: 0}
    for prompt in range(len(plain.unwrapped.prompts)):
        for prefix in states_below(make(arguments), prompt):
            for token in range(4):
                start = {"prompt": prompt, "completion": list(prefix)}
                before, _ = plain.reset(options=start)
                assert_same(before, wrapped.reset(options=start)[0])
                result = wrapped.step(token)
                try:
                    expected = plain.step(token)
                except InvalidAction:
                    info = {
                        "action_mask": np.ones(4, dtype=np.int8),
                        "ref_log_prob": -np.inf,
                        "reward_terms": {"illegal": -1.5},
                        "prompt": plain.unwrapped.prompts[prompt],
                        "completion": plain.unwrapped.mdp.decode(list(prefix)),
                        "finish_reason": "illegal",
                    }
                    expected = (before, -1.5, True, False, info)
                assert_same(result, expected)
                count["illegal" in expected[-1]["reward_terms"]] += 1
                if result[2]:
                    with pytest.raises(gym.error.ResetNeeded):
                        wrapped.step(token)
    assert min(count.values()) > 10


def array_and_loop(arguments: dict[str, Any], mode: AutoresetMode, policy: Any, rewards: tuple[float, float]) -> Any:
    """A wrapped `TextVectorEnv`, and Gymnasium's loop over plain environments: the oracle."""
    single = partial(PlainEnv, TextMDP(**arguments), policy, rewards[1])
    envs = TextVectorEnv(TextMDP(**arguments), 4, autoreset_mode=mode, policy=policy)
    return TerminateIllegal(envs, rewards[0]), SyncVectorEnv([single] * 4, autoreset_mode=mode)


def compare_any_actions(pair: Any, mode: AutoresetMode, seed: int, size: int) -> int:
    """Asserts that both return the same along random tokens, masked or not; returns how many masked ones were taken."""
    rng, illegal = np.random.default_rng(seed), 0
    results = [envs.reset(seed=seed) for envs in pair]
    for _ in range(12):
        actions = rng.integers(size, size=4)
        results = [envs.step(actions) for envs in pair]
        assert_same(*([*result[:-1], masked_info(result[-1])] for result in results))
        info, terminated = results[0][-1], results[0][2]
        reasons = info.get("final_info", info).get("finish_reason", np.empty(0, dtype=object))
        illegal += int((reasons == "illegal").sum())
        if mode == AutoresetMode.DISABLED and terminated.any():
            resets = [envs.reset(options={"reset_mask": terminated.copy()}) for envs in pair]
            assert_same(*((observation, masked_info(each)) for observation, each in resets))
    return illegal


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=15, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 99), bound=st.booleans(), gold=st.booleans())
def test_a_row_is_a_single_environment(
    mode: AutoresetMode, arguments: dict[str, Any], seed: int, bound: bool, gold: bool
) -> None:
    """Whatever tokens are taken: everything that both return, with Gymnasium's own loop as the oracle."""
    arguments = arguments | ({"gold_reward": golden} if gold else {})
    size = len(arguments["tokenizer"])
    pair = array_and_loop(arguments, mode, RandomPolicy(size) if bound else None, (-2.0, -2.0))
    compare_any_actions(pair, mode, seed, size)


@pytest.mark.parametrize("mode", MODES)
def test_the_comparison_sees_illegal_actions(mode: AutoresetMode) -> None:
    """Control: many are taken, and another reward of them is found."""
    assert compare_any_actions(array_and_loop(SPARSE, mode, None, (-2.0, -2.0)), mode, 0, 4) > 5
    with pytest.raises(AssertionError):
        compare_any_actions(array_and_loop(SPARSE, mode, None, (-2.0, -2.5)), mode, 0, 4)


@pytest.mark.parametrize("mode", MODES)
def test_tabulated_episodes_end_too(mode: AutoresetMode) -> None:
    """A task that is tabulated without the wrapper; after a reset of all rows too."""
    arguments = SPARSE | {"reward": PureLetters(SPARSE["prompts"])}
    assert isinstance(TextVectorEnv(TextMDP(**arguments), 4).episodes.backend, TabulatedBackend)
    pair = array_and_loop(arguments, mode, None, (-2.0, -2.0))
    for seed in range(3):
        assert compare_any_actions(pair, mode, seed, 4) > 3


def test_a_masked_action_calls_no_reward_and_no_policy() -> None:
    """There is nothing to score, and the policy's probability of the token does not matter."""

    def never(input_ids: Any, attention_mask: Any) -> Any:
        raise AssertionError("called")

    env = TerminateIllegal(make(MASKED | {"reward": forgetful}), -1.0)
    env.unwrapped.bind_policy(never)
    _, info = env.reset(seed=0)
    assert env.step(int(np.argmin(info["action_mask"])))[-1]["finish_reason"] == "illegal"
    with pytest.raises(AssertionError, match="called"):  # control
        _, info = env.reset(seed=0)
        env.step(int(np.argmax(info["action_mask"])))


def test_a_step_that_fails_changes_nothing() -> None:
    """Where another row's reward fails, the illegal row's episode has not ended either."""
    failing = [True]

    def judge(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        return [float("nan") if failing else 1.0] * len(prompts)

    def maker() -> Any:
        return TerminateIllegal(TextVectorEnv(TextMDP(**(MASKED | {"reward": judge, "max_new_tokens": 1})), 2), -1.0)

    envs, twin = maker(), maker()
    masks, _ = (each.reset(seed=0)[1]["action_mask"] for each in (envs, twin))
    actions = np.array([masks[0].argmin(), masks[1].argmax()])
    with pytest.raises(ValueError, match="judge"):
        envs.step(actions)
    failing.clear()
    result = envs.step(actions)
    assert_same(result, twin.step(actions))
    assert result[-1]["finish_reason"].tolist() == ["illegal", "length"]


@pytest.mark.parametrize("action", [99, -1, 1.5, "a", None, [0, 1]])
def test_what_is_no_token_is_refused_still(action: Any) -> None:
    """In both, and the next step is as if nothing had happened."""
    for env in (TerminateIllegal(make(SPARSE), -1.0), TerminateIllegal(TextVectorEnv(TextMDP(**SPARSE), 2), -1.0)):
        env.reset(seed=0)
        with pytest.raises(InvalidAction):
            env.step(action if isinstance(env, gym.Env) else [action, 0])
        assert env.unwrapped.illegal_reward is None
    with pytest.raises(gym.error.ResetNeeded):
        TerminateIllegal(gym.make(TAJ_MAHAL).unwrapped, -1.0).step(EOS)


def test_without_the_wrapper_the_environment_is_as_before() -> None:
    """The environment below raises, also after an episode that a masked action ended."""
    for env, action in ((gym.make(TAJ_MAHAL), EOS), (gym.make_vec(TAJ_MAHAL, num_envs=2), np.array([EOS, EOS]))):
        wrapped: Any = TerminateIllegal(env, -1.0)
        wrapped.reset(seed=0)
        assert np.all(wrapped.step(action)[2])
        env.reset(seed=0)
        with pytest.raises(InvalidAction, match="masked"):
            env.step(action)


# -- other wrappers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_episode_statistics_have_the_illegal_step(inside: bool) -> None:
    """Wrappers above and below see the end of the episode."""
    record = gym.wrappers.RecordEpisodeStatistics
    illegal = partial(TerminateIllegal, illegal_reward=-2.0)
    env: Any = gym.make(TAJ_MAHAL, kl_coef=0.0)
    env = illegal(record(env)) if inside else record(illegal(env))
    env.reset(options={"prompt": "where is the taj mahal", "completion": "it is"})
    assert env.step(env.unwrapped.mdp.encode_completion("in")[0])[1:3] == (0.0, False)
    info = env.step(EOS)[-1]
    assert (info["episode"]["r"], info["episode"]["l"]) == (-2.0, 2)
    assert info["completion"] == "it is in"


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_episode_statistics_of_a_batch(mode: AutoresetMode, inside: bool) -> None:
    """The same in each mode."""
    record = gym.wrappers.vector.RecordEpisodeStatistics
    envs: Any = gym.make_vec(TAJ_MAHAL, num_envs=2, autoreset_mode=mode)
    envs = TerminateIllegal(record(envs), -2.0) if inside else record(TerminateIllegal(envs, -2.0))
    _, info = envs.reset(seed=0)
    info = envs.step(np.array([EOS, info["action_mask"][1].argmax()]))[-1]
    episode = info["episode"]
    assert (episode["r"][0], episode["l"][0]) == (-2.0, 1) and info["_episode"].tolist() == [True, False]


def test_a_time_limit_below_counts_the_illegal_step() -> None:
    """Truncation and termination in one step."""
    env = TerminateIllegal(gym.wrappers.TimeLimit(gym.make(TAJ_MAHAL), max_episode_steps=1), -2.0)
    env.reset(seed=0)
    assert env.step(EOS)[1:4] == (-2.0, True, True)


def test_other_wrappers_fit_above_and_below() -> None:
    """The observation has its other form; after the end no action counts, and none is masked."""
    for wrap in (FlatTokens, MaskInObservation):
        for env in (wrap(TerminateIllegal(make(MASKED), -1.0)), TerminateIllegal(wrap(make(MASKED)), -1.0)):
            observation, info = env.reset(seed=0)
            after, _, terminated, _, _ = env.step(int(np.argmin(info["action_mask"])))
            assert terminated and after in env.observation_space
            expected = observation if wrap is FlatTokens else observation | {"action_mask": np.ones(4, dtype=np.int8)}
            assert_same(after, expected)


def test_a_whole_completion_ends_at_its_masked_token() -> None:
    """CompletionAction above: the tokens before it have their rewards, and the sequence is without it."""
    env = CompletionAction(TerminateIllegal(gym.make(TAJ_MAHAL, kl_coef=0.0), -2.0))
    env.reset(options={"prompt": "where is the taj mahal"})
    text, reward, terminated, _, info = env.step("it is paris paris")
    assert (text, reward, terminated) == ("where is the taj mahal it is", -2.0, True)
    assert info["token_rewards"] == [0.0, 0.0, -2.0] and info["finish_reason"] == "illegal"
    with pytest.raises(gym.error.ResetNeeded):
        env.step("it is in agra")
    env.reset(options={"prompt": "where is the taj mahal"})
    assert env.step("it is in agra")[1] == 1.0


def test_rendering_shows_the_illegal_reward() -> None:
    """In a line of its own, below the tokens."""
    env = TerminateIllegal(gym.make(TAJ_MAHAL, render_mode="ansi"), -2.0)
    env.reset(options={"prompt": "where is the taj mahal", "completion": "it is"})
    env.step(EOS)
    assert env.render().splitlines()[1:] == [
        "  it               ",
        "  is               ",
        "  (masked token)   -2.0000 = illegal -2.0000",
    ]
    env.reset(options={"prompt": 0})
    assert "illegal" not in env.render()


# -- Gymnasium's contract ----------------------------------------------------------------------------------------------


def test_checkers_pass() -> None:
    """Gymnasium's and Stable-Baselines3's, and with actions of which most are masked."""
    check_env(TerminateIllegal(gym.make(TAJ_MAHAL).unwrapped, -1.0), skip_render_check=True)
    sb3_check_env(TerminateIllegal(gym.make(TAJ_MAHAL), -1.0))
    env = TerminateIllegal(gym.make(TAJ_MAHAL).unwrapped, -1.0)
    env.action_space = gym.spaces.Discrete(int(env.action_space.n))
    check_env(env, skip_render_check=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_ends_its_own_episode(copied: Any) -> None:
    """And leaves the original's in progress."""
    batch = partial(TextVectorEnv, TextMDP(**MASKED), 2)
    for env in (TerminateIllegal(make(MASKED), -1.0), TerminateIllegal(batch(), -1.0)):
        _, info = env.reset(seed=0)
        action, twin = info["action_mask"].argmin(axis=-1), copied(env)
        assert type(twin) is type(env)
        result = twin.step(action)
        assert np.all(result[1] == -1.0) and np.all(result[2])
        assert_same(env.step(action), result)


def test_the_spec_makes_it_again() -> None:
    """`gym.make(env.spec)`, as libraries do that copy an environment."""
    env = gym.make(TerminateIllegal(gym.make(TAJ_MAHAL), -1.25).spec)
    env.reset(seed=0)
    assert isinstance(env, TerminateIllegal) and env.step(EOS)[1:3] == (-1.25, True)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf, 1e39, None, "-1", True, [1.0], np.zeros(1), 1j])
def test_an_illegal_reward_must_be_finite(reward: Any) -> None:
    """Single and batched; the error shows the value."""
    for env in (gym.make(TAJ_MAHAL), gym.make_vec(TAJ_MAHAL, num_envs=2)):
        with pytest.raises(ValueError, match="illegal_reward must be a number, finite in float32, got"):
            TerminateIllegal(env, reward)


@pytest.mark.parametrize("reward", [-1, 0, 2.5, np.float32(-1.5), np.int64(3)])
def test_a_reward_is_a_float(reward: Any) -> None:
    """Control: any finite number is accepted, and given as Python's float."""
    env = TerminateIllegal(gym.make(TAJ_MAHAL), reward)
    env.reset(seed=0)
    _, got, _, _, info = env.step(EOS)
    assert type(got) is float and got == reward and info["reward_terms"] == {"illegal": got}


def test_other_environments_are_refused() -> None:
    """Single, batched, and wrapped so that actions are no tokens."""
    with pytest.raises(TypeError, match=r"single environment.*got CartPoleEnv"):
        TerminateIllegal(gym.make("CartPole-v1"), -1.0)
    for envs in (gym.make_vec("CartPole-v1"), gym.make_vec(TAJ_MAHAL, vectorization_mode="sync")):
        with pytest.raises(TypeError, match=r"TerminateIllegal needs gym.make_vec\('textenv/...'\)"):
            TerminateIllegal(envs, -1.0)
    with pytest.raises(ValueError, match="actions are tokens.*before its actions are changed"):
        TerminateIllegal(CompletionAction(gym.make(TAJ_MAHAL)), -1.0)
    for env in (gym.make(TAJ_MAHAL), gym.make_vec(TAJ_MAHAL)):
        with pytest.raises(ValueError, match="wrapped in TerminateIllegal already"):
            TerminateIllegal(TerminateIllegal(env, -1.0), -1.0)


@pytest.mark.parametrize("wrapper", [TerminateIllegal, VectorTerminateIllegal])
@pytest.mark.parametrize("value", [5, None, TAJ_MAHAL, [], object, gym.Env, TextVectorEnv, TextEnv])
def test_what_is_no_environment_is_refused(wrapper: Any, value: Any) -> None:
    """Classes too; the error shows the value, and the other wrapper's environment is named by its class."""
    with pytest.raises(TypeError, match=f"single environment.*got {re.escape(repr(value))}"):
        wrapper(value, -1.0)
    with pytest.raises(TypeError, match="a single environment, got TextEnv"):
        VectorTerminateIllegal(gym.make(TAJ_MAHAL), -1.0)


@pytest.mark.parametrize("batched", [False, True])
def test_our_agents_and_the_oracle_refuse_it(batched: bool) -> None:
    """They read the MDP, in which no action is illegal; also where another wrapper is above it."""
    inner: Any = gym.make_vec(TAJ_MAHAL, num_envs=2) if batched else gym.make(TAJ_MAHAL)
    record = gym.wrappers.vector.RecordEpisodeStatistics if batched else gym.wrappers.RecordEpisodeStatistics
    policy = TransformerPolicy.for_env(toy())
    for env in (TerminateIllegal(inner, -1.0), record(TerminateIllegal(inner, -1.0))):
        for use in (
            exact.solve,
            lambda env: exact.evaluate(env, policy),
            lambda env: exact.policy_gradient(env, policy),
            lambda env: collect(env, policy, 2),
            lambda env: PPO(policy, env),
            TransformerPolicy.for_env,
            lambda env: play(env, 0, "it is in agra"),
        ):
            with pytest.raises(TypeError, match=r"agents without masks.*pass the environment that it wraps"):
                use(env)
    assert exact.solve(inner).objective > 1  # control: the environment below
