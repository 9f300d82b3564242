"""Arguments of `reset` and `step`: a value is legal by a stated rule, or refused in a sentence and changes nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.envs import MODES
from tests.helpers.refusals import NotRefused, odd_values, refused
from tests.helpers.tasks import RandomPolicy, assert_same, count_words, make, random_reference, words
from textenv import InvalidAction, TextMDP, TextVectorEnv
from textenv.testing import play
from textenv.wrappers import CompletionAction, FlatTokens, MaskInObservation, TerminateIllegal

B = 2
many = settings(max_examples=150, deadline=None)
MDP = TextMDP(**words(reference=random_reference(4, 2, sparse=False), max_new_tokens=3))


def single() -> Any:
    """A single environment in the middle of an episode."""
    env = make(words(reference=random_reference(4, 2, sparse=False), max_new_tokens=3))
    env.reset(seed=3)
    env.step(1)
    return env


def batch(mode: Any = "NextStep") -> TextVectorEnv:
    """A batch in the middle of its episodes."""
    envs = TextVectorEnv(MDP, B, autoreset_mode=mode)
    envs.reset(seed=3)
    envs.step(np.array([1, 2]))
    return envs


def check(maker: Callable[[], Any], call: Callable[[Any], Any], legal: bool, action: Any) -> None:
    """A legal call works; an illegal one is refused, and the environment does what it does without that call."""
    env = maker()
    if legal:
        call(env)
        return
    with refused():
        call(env)
    twin = maker()
    assert_same(env.step(action), twin.step(action))
    assert_same(env.reset(), twin.reset())
    assert_same(env.unwrapped.np_random.random(), twin.unwrapped.np_random.random())


def is_seed(value: Any) -> bool:
    """None or an integer from 0."""
    return value is None or (isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0)


def is_integer(value: Any) -> bool:
    """An integer by Python's rule, and no boolean."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool | np.bool_) and getattr(value, "dtype", None) != torch.bool


@many
@given(odd_values())
@example(np.int64(7))
@example(np.uint64(2**64 - 1))
def test_a_seed_is_an_integer_from_zero(seed: Any) -> None:
    """numpy's integers too; the generators stay as they were if it is refused, with options or without."""
    check(single, lambda env: env.reset(seed=seed), is_seed(seed), 1)
    check(single, lambda env: env.reset(seed=seed, options={"prompt": "a zebra"}), False, 1)
    if is_seed(seed) and seed is not None:
        assert_same(single().reset(seed=seed), single().reset(seed=int(seed)))


@many
@given(odd_values() | st.lists(odd_values(), min_size=B, max_size=B))
@example([np.int64(1), None])
@example(np.array([4, 5]))
@example((1, 2, 3))
@example([2**200, 1.5])
def test_the_seeds_of_a_batch_are_one_or_one_per_row(seeds: Any) -> None:
    """None in a list leaves a row's stream."""
    listed = isinstance(seeds, list | tuple | range) or (isinstance(seeds, np.ndarray) and seeds.ndim == 1)
    legal = len(seeds) == B and all(map(is_seed, seeds)) if listed else is_seed(seeds)
    check(batch, lambda env: env.reset(seed=seeds), legal, np.array([1, 1]))
    check(batch, lambda env: env.reset(seed=seeds, options={"prompt": "a zebra"}), False, np.array([1, 1]))


@many
@given(odd_values().filter(lambda value: value is not None and not (isinstance(value, dict) and not value)))
def test_options_are_a_dict_with_known_keys(value: Any) -> None:
    """Of single environments and batches."""
    for maker, action in ((single, 1), (batch, np.array([1, 1]))):
        if not (isinstance(value, dict) and "prompt" in value):
            check(maker, lambda env: env.reset(options=value), False, action)
    check(single, lambda env: env.reset(options={"reset_mask": value}), False, 1)
    check(single, lambda env: env.reset(options={"promt": value}), False, 1)


PROMPTS = ("a", "b", "a b", "b a b", "c", "a\0")


@many
@given(odd_values())
@example(np.int64(1))
@example(torch.tensor([1, 2]))
@example(np.array([1, 2]))
@example([2, 1])
@example(3)
@example("c c c c")
def test_a_prompt_is_an_index_a_text_or_ids(value: Any) -> None:
    """A completion is a text or ids. Whether one is accepted is decided by the same rule in a batch."""
    for maker, action in ((single, 1), (batch, np.array([1, 1]))):
        for name in ("prompt", "completion"):
            options = {"prompt": 0, name: value}
            env = maker()
            try:
                env.reset(options=options)
            except Exception:
                check(maker, lambda env, given=options: env.reset(options=given), False, action)
                continue
            ids = np.asarray(value) if not isinstance(value, str) else None
            assert ids is None or value is None or ids.size == 0 or ids.dtype.kind in "iu"
            assert not isinstance(value, bool | float | dict)


@many
@given(odd_values())
@example(np.array([False, False]))
@example(np.array([1, 0]))
@example(np.array([[True], [True]]))
@example(torch.tensor([True, False]))
@example([True, False])
@example(np.array([True, False, True]))
def test_a_reset_mask_is_a_bool_array_of_the_rows(mask: Any) -> None:
    """It is refused before anything is drawn."""
    check(batch, lambda env: env.reset(seed=5, options={"reset_mask": mask}), mask is None, np.array([1, 1]))


@many
@given(odd_values())
@example(np.int32(2))
@example(np.array(2))
@example(torch.tensor(2))
@example(np.array([2]))
@example(4)
@pytest.mark.parametrize("path", ["table", "general"])
def test_an_action_is_one_integer(path: str, action: Any) -> None:
    """By both ways of stepping: that for tables, and the general one, where there is a shaping term."""

    def maker() -> Any:
        return single() if path == "table" else with_shaping()

    legal = is_integer(action) and np.ndim(action) == 0 and 0 <= operator.index(action) < 4
    check(maker, lambda env: env.step(action), legal, 1)


def with_shaping() -> Any:
    """As `single`, with a shaping term of zeros."""
    env = make(words(shaping=lambda transitions: np.zeros(transitions.tokens.shape), max_new_tokens=3))
    env.reset(seed=3)
    env.step(1)
    return env


def all_ended(mode: Any) -> TextVectorEnv:
    """A batch of which every row has ended."""
    envs = batch(mode)
    envs.step(np.array([0, 0]))
    return envs


@many
@given(odd_values() | st.lists(odd_values(), min_size=B, max_size=B))
@example([1, 2])
@example((np.int64(1), np.int8(2)))
@example(torch.tensor([1, 2]))
@example(np.array([1, 2], dtype=np.uint8))
@example(np.array([1, 2], dtype=object))
@example([1, 4])
@example(bytearray(b"\1\2"))
@pytest.mark.parametrize("mode", MODES)
def test_actions_are_one_integer_per_row(mode: Any, actions: Any) -> None:
    """Also where a row, or every row, has ended and ignores the value (NEXT_STEP)."""
    array = actions_array(actions)
    numbers = array.shape == (B,) and array.dtype.kind in "iu" and all(map(is_integer, actions))
    numbers = numbers and not isinstance(actions, bytes | bytearray)
    legal = numbers and all(0 <= operator.index(action) < 4 for action in actions)
    check(lambda: batch(mode), lambda envs: envs.step(actions), legal, np.array([1, 1]))
    if mode == MODES[0]:
        check(lambda: all_ended(mode), lambda envs: envs.step(actions), numbers, np.array([1, 1]))


def actions_array(actions: Any) -> Any:
    """What numpy makes of them; a scalar where it cannot."""
    try:
        return np.asarray(actions)
    except Exception:
        return np.asarray(None)


def test_the_oracle_of_refusals_finds_a_foreign_error() -> None:
    """Control: an error of numpy's, and none at all, are not accepted as refusals."""
    with pytest.raises(AssertionError, match="raised in"), refused():
        np.zeros((1, 1)).reshape(3)
    with pytest.raises(NotRefused), refused():
        pass


# -- what a refused first reset leaves ---------------------------------------------------------------------------------


def test_an_environment_works_after_a_refused_first_reset() -> None:
    """As a user meets it who unit-tests a reward in a notebook: a typing error, then the right prompt."""
    env = gym.make("textenv/TajMahal-v0")
    with pytest.raises(ValueError, match="'mahl' is not in the vocabulary"):
        play(env, "where is the taj mahl", "it is in agra")
    assert play(env, "where is the taj mahal", "it is in agra").score == 1.0


def taj_mahal_batch() -> Any:
    """Two episodes of TajMahal."""
    return gym.make_vec("textenv/TajMahal-v0", num_envs=2)


WRAPPED: dict[str, Any] = {
    "of gym.make": lambda env: env,
    "RecordEpisodeStatistics": gym.wrappers.RecordEpisodeStatistics,
    "TimeLimit": lambda env: gym.wrappers.TimeLimit(env, 2),
    "Autoreset": gym.wrappers.Autoreset,
    "FlatTokens": FlatTokens,
    "MaskInObservation": MaskInObservation,
    "CompletionAction": CompletionAction,
    "TerminateIllegal": lambda env: TerminateIllegal(env, -1.0),
    "SyncVectorEnv": lambda env: gym.vector.SyncVectorEnv([lambda: env]),
    "TextVectorEnv": lambda env: taj_mahal_batch(),
    "vector.RecordEpisodeStatistics": lambda env: gym.wrappers.vector.RecordEpisodeStatistics(taj_mahal_batch()),
    "TerminateIllegal of a batch": lambda env: TerminateIllegal(taj_mahal_batch(), -1.0),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_refused_first_call_leaves_nothing(name: str) -> None:
    """Through Gymnasium's wrappers and ours: what follows is as if the refused calls had not been."""
    env, twin = (WRAPPED[name](gym.make("textenv/TajMahal-v0")) for _ in range(2))
    action: Any = twin.action_space.sample()
    for arguments in (
        {"options": {"prompt": "where is the taj mahl"}},
        {"options": {"prompt": "where is the taj mahal", "completion": "zebra"}},
        {"options": {"promt": 0}},
        {"seed": -1},
    ):
        with pytest.raises((ValueError, gym.error.Error)):
            env.reset(**arguments)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    results = []
    for each in (env, twin):
        results.append([each.reset(seed=3)])
        each.action_space.seed(0)
        results[-1] += [
            each.step(each.action_space.sample())
            for _ in range(1 if name in ("CompletionAction", "SyncVectorEnv") else 2)
        ]
    for _, *steps in results:
        for step in steps:
            step[-1].pop("episode", None)  # its time differs
    assert_same(*results)


def test_an_environment_works_after_a_refused_first_step() -> None:
    """The episode that was started goes on."""
    env, twin = gym.make("textenv/Toy-v0"), gym.make("textenv/Toy-v0")
    for each in (env, twin):
        each.reset(seed=0)
    with pytest.raises(InvalidAction):
        env.step("a")
    for _ in range(2):
        assert_same(env.step(1), twin.step(1))


# -- a bound policy ----------------------------------------------------------------------------------------------------


def logits(row: list[Any], dtype: Any = np.float64) -> Callable[[Any, Any], Any]:
    """A policy with the same logits in every state."""
    return lambda input_ids, attention_mask: np.array([row] * len(input_ids), dtype=dtype)


BROKEN: list[tuple[Any, str]] = [
    (logits([0.0, -np.inf, 0.0, 0.0]), "token that is taken a positive probability.*got log pi = -inf for token 1"),
    (logits([1e308, -1e308, 0.0, 0.0]), "token that is taken a positive probability.*-inf for token 1"),
    (logits([np.inf, 0.0, 0.0, 0.0]), "must be numbers, or -inf for some of the tokens, got inf"),
    (logits([-np.inf] * 4), "got -inf for every token"),
    (logits([0.0, np.nan, 0.0, 0.0]), "got nan"),
    (logits(["a"] * 4, object), r"logits of shape \[B, V\] = \(\d, 4\), got array"),
    (logits([1j] * 4, complex), "logits of shape"),
    (logits([True] * 4, bool), "logits of shape"),
    (lambda ids, mask: [[0.0], [0.0, 0.0]], r"logits of shape .* got \[\[0.0\], \[0.0, 0.0\]\]"),
    (lambda ids, mask: None, "logits of shape .* got None"),
    (lambda ids, mask: np.zeros(4), r"logits of shape .* got \(4,\)"),
    (lambda ids, mask: torch.zeros(len(ids), 4, dtype=torch.complex64), "logits of shape"),
    (lambda ids, mask: {"logits": np.zeros((len(ids), 4))}, "logits of shape .* got {'logits'"),
]


@pytest.mark.parametrize(("policy", "message"), BROKEN)
@pytest.mark.parametrize("batched", [False, True])
def test_a_bound_policy_without_a_reward_is_refused(policy: Any, message: str, batched: bool) -> None:
    """A token of probability zero would have an infinite reward; nothing changes, and another token may be taken."""
    maker, action = (batch, np.array([1, 1])) if batched else (single, 1)
    env = maker()
    env.unwrapped.bind_policy(policy)
    with refused(ValueError, match=message):
        env.step(action)
    env.unwrapped.bind_policy(None)
    assert_same(env.step(action), maker().step(action))


@pytest.mark.parametrize("row", [[-np.inf, 0.0, 1.0, -5.0], [1, 0, 2, 3]])
@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_a_bound_policy_may_exclude_tokens_that_are_not_taken(row: list[Any], dtype: Any) -> None:
    """Control, in several dtypes: the reward is finite, and has log pi of the normalized logits."""
    policy = logits(row) if dtype == "bfloat16" else logits(row, dtype)
    if dtype == "bfloat16":
        policy = lambda ids, mask: torch.tensor([row] * len(ids), dtype=torch.bfloat16)  # noqa: E731
    env = single()
    env.unwrapped.bind_policy(policy)
    _, _, _, _, info = env.step(1)
    log_prob = -np.log(sum(np.exp(value - row[1]) for value in row))
    assert info["reward_terms"]["kl_policy"] == pytest.approx(-0.5 * log_prob, rel=1e-2)


def test_the_policy_is_not_checked_where_an_episode_has_ended() -> None:
    """NEXT_STEP: what it returns for a row that is being reset does not matter."""

    def policy(input_ids: Any, attention_mask: Any) -> Any:
        return np.where(attention_mask[:, -3:-2] == 1, np.nan, np.zeros((len(input_ids), 4)))

    envs = TextVectorEnv(MDP, B, policy=policy)
    envs.reset(seed=0)
    envs.step(np.array([0, 0]))
    _, rewards, _, _, _ = envs.step(np.array([1, 1]))
    assert rewards.tolist() == [0.0, 0.0]


def test_a_language_model_is_refused_as_policy() -> None:
    """When it is bound, with the way to bind one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    for env in (single(), batch()):
        with refused(TypeError, match="got GPT2LMHeadModel.*agents.policy.TransformerPolicy"):
            env.unwrapped.bind_policy(model)


def test_an_error_of_the_policy_says_how_it_was_called() -> None:
    """A module that takes tensors: its own error, with a note; nothing changes."""
    for env, action in ((single(), 1), (batch(), np.array([1, 1]))):
        env.unwrapped.bind_policy(torch.nn.Bilinear(4, 4, 4))
        with pytest.raises(TypeError) as error:
            env.step(action)
        assert "bound policy, which is called with numpy arrays" in error.value.__notes__[0]
        env.unwrapped.bind_policy(None)
        env.step(action)


@pytest.mark.parametrize("policy", [RandomPolicy, lambda input_ids: None, "gpt2", 5])
def test_what_cannot_be_called_as_a_policy_is_refused(policy: Any) -> None:
    """When it is bound, and where it is an argument of `gym.make`: a class, another signature, no function at all."""
    for env in (single(), batch()):
        with refused(TypeError, match=r"A policy must be a function \(input_ids, attention_mask\)"):
            env.unwrapped.bind_policy(policy)
    with pytest.raises(TypeError, match="A policy must be a function"):
        gym.make("textenv/Toy-v0", policy=policy)


# -- a reference or reward that fails ----------------------------------------------------------------------------------


class Interrupted:
    """A uniform reference that is interrupted, as by Ctrl-C, where `fails` is True."""

    full_support = True
    fails = False

    def log_probs(self, input_ids: Any, attention_mask: Any) -> np.ndarray:
        """log 1/4 less a term in the last token, renormalized."""
        if self.fails:
            raise KeyboardInterrupt
        scores = np.asarray(input_ids).sum(axis=1, keepdims=True) * np.arange(4) / 10
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("batched", [False, True])
def test_an_interrupted_reference_is_called_again(batched: bool) -> None:
    """The interrupted step has changed nothing: it is taken again, with the log-probabilities of its own state."""
    action: Any = np.array([2, 2]) if batched else 2
    arguments = words(reference=Interrupted(), max_new_tokens=4)

    def maker() -> Any:
        return TextVectorEnv(TextMDP(**arguments), B) if batched else make(arguments)

    env, twin = maker(), maker()
    for each in (env, twin):
        each.reset(seed=0)
    arguments["reference"].fails = True
    with pytest.raises(KeyboardInterrupt):
        env.step(action)
    arguments["reference"].fails = False
    for _ in range(2):
        assert_same(env.step(action), twin.step(action))


def test_a_whole_completion_whose_reward_fails_can_be_tried_again() -> None:
    """CompletionAction restores the tokens that it has stepped, and what a wrapper below has counted."""
    failing = [True]

    def judge(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> Any:
        return [float("nan")] if failing else count_words(prompts, completions, completion_ids)

    def maker() -> Any:
        return CompletionAction(gym.wrappers.RecordEpisodeStatistics(make(words(reward=judge, max_new_tokens=3))))

    env, twin = maker(), maker()
    for each in (env, twin):
        each.reset(seed=0)
    with pytest.raises(ValueError, match="judge"):
        env.step("a b")
    failing.clear()
    left, right = env.step("a b"), twin.step("a b")
    for result in (left, right):
        del result[-1]["episode"]["t"]
    assert_same(left, right)
    assert left[-1]["episode"]["l"] == 3
