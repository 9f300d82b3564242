"""A step does no unnecessary work: measured in calls and bytes, not in seconds."""

from __future__ import annotations

import copy
import pickle
import sys
import tracemalloc
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import make, random_reference, words, zero
from textenv import TextMDP, TextVectorEnv
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.testing import play

WIDE = 50_000


def wide(mode: str = "NextStep", num_envs: int = 3) -> Any:
    """A vocabulary of 50,000 tokens, none of them masked."""
    tokenizer = WordTokenizer([f"w{i}" for i in range(WIDE - 1)])
    mdp = TextMDP(tokenizer, ["w1", "w2"], zero, max_new_tokens=2)
    return TextVectorEnv(mdp, num_envs, autoreset_mode=mode)


# -- masks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [mode.value for mode in AutoresetMode])
def test_a_mask_that_allows_everything_is_one_array(mode: str) -> None:
    """Every step returns the same read-only array of V bytes, for any B, also in a copy of the environment."""
    envs = wide(mode)
    for each in (envs, copy.deepcopy(envs), pickle.loads(pickle.dumps(envs))):
        mask = each.reset(seed=0)[1]["action_mask"]
        assert mask.shape == (3, WIDE) and mask.dtype == np.int8 and mask.all()
        assert mask.base.nbytes == WIDE and not mask.flags.writeable
        for _ in range(3):
            _, _, terminated, _, info = each.step(np.array([1, 0, 2]))
            assert info["action_mask"] is mask
            if "final_info" in info:
                final = info["final_info"]["action_mask"]
                assert (final == terminated[:, None]).all() and not np.shares_memory(final, mask)
                assert final.base.nbytes == 3 and not final.flags.writeable
            if mode == "Disabled":
                each.reset(options={"reset_mask": terminated})


def test_a_sparse_mask_is_a_new_array() -> None:
    """Control: with a sparse reference the masks of two steps are two arrays, both writable."""
    envs = TextVectorEnv(TextMDP(**words(reference=random_reference(4, 0, sparse=True))), 3)
    first = envs.reset(seed=0)[1]["action_mask"]
    second = envs.step(first.argmax(axis=1))[-1]["action_mask"]
    assert not np.shares_memory(first, second) and first.flags.writeable and second.flags.writeable


def test_a_step_allocates_no_mask() -> None:
    """A step over 50,000 tokens allocates less memory than one mask."""
    envs = wide()
    envs.reset(seed=0)
    envs.step(np.array([1, 2, 3]))
    tracemalloc.start()
    try:
        envs.step(np.array([1, 2, 3]))
        assert tracemalloc.get_traced_memory()[1] < WIDE
        masks = np.ones((3, WIDE), dtype=np.int8)  # control
        assert tracemalloc.get_traced_memory()[1] > masks.nbytes
    finally:
        tracemalloc.stop()


# -- references --------------------------------------------------------------------------------------------------------


class Calls:
    """Counts the calls of a method, and the rows of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.rows: list[int] = []
        inner = getattr(owner, name)

        def counted(this: Any, first: Any, *rest: Any, **named: Any) -> Any:
            self.rows.append(len(first))
            return inner(this, first, *rest, **named)

        monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("sparse", [False, True])
def test_a_table_is_looked_up_and_not_called(
    mode: AutoresetMode, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps never call a table for [B, V] nor read a sequence from its start; a reset into a state reads it once."""
    envs = TextVectorEnv(TextMDP(**words(reference=random_reference(4, 0, sparse))), 4, autoreset_mode=mode)
    called, read = Calls(monkeypatch, TableReference, "log_probs"), Calls(monkeypatch, TableReference, "final_state")
    _, info = envs.reset(seed=0)
    for _ in range(12):
        _, _, terminated, _, info = envs.step(info["action_mask"].argmax(axis=1))
        if mode == AutoresetMode.DISABLED and terminated.any():
            envs.reset(options={"reset_mask": terminated})
            info = {"action_mask": envs.action_masks().astype(np.int8)}
    assert not called.rows and not read.rows
    envs.reset(options={"prompt": 1})
    assert read.rows[-1] == 4  # control


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99), sparse=st.booleans(), mode=st.sampled_from([mode.value for mode in AutoresetMode]))
def test_a_carried_table_state_equals_reading_from_the_start(seed: int, sparse: bool, mode: str) -> None:
    """In every live row, also after resets: the backend's log-probabilities are the table's of the observation."""
    reference = random_reference(4, seed, sparse)
    envs = TextVectorEnv(TextMDP(**words(reference=reference)), 5, autoreset_mode=mode)
    fresh, rng = copy.deepcopy(reference), np.random.default_rng(seed)
    observation, _ = envs.reset(seed=seed)
    for _ in range(12):
        live, expected = envs.episodes.live, fresh.log_probs(**observation)
        assert envs.episodes.ref_log_probs[live].tolist() == expected[live].tolist()
        keys = rng.random((5, 4))
        actions = np.where(envs.episodes.action_mask() == 1, keys, -1.0).argmax(axis=1)
        observation, _, terminated, _, _ = envs.step(actions)
        if mode == "Disabled" and terminated.any():
            observation, _ = envs.reset(options={"reset_mask": terminated})


class Sharper(TableReference):
    """A table that overrides `log_probs`."""

    def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
        """The table's log-probabilities at temperature 1/2."""
        doubled = 2 * super().log_probs(input_ids, attention_mask)
        return doubled - np.log(np.exp(doubled).sum(axis=1, keepdims=True))


def test_a_subclass_of_a_table_is_called() -> None:
    """The subclass's log-probabilities enter the reward, not the table's."""
    unigram = np.log([0.1, 0.2, 0.3, 0.4])
    rewards = play(make(words(reference=Sharper(unigram), reward=zero, kl_coef=1.0)), 0, "c a").rewards
    assert np.exp(rewards) == pytest.approx(np.array([0.16, 0.04, 0.01]) / 0.3)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_only_finished_completions_are_decoded_and_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each completion once, one batch per step; the toy's reward takes arrays, so that no list is made."""
    envs: Any = gym.make_vec("textenv/Toy-v0", num_envs=16, max_new_tokens=8)  # too many completions to be tabulated
    task = envs.mdp.reward.functions[0]
    decoded = Calls(monkeypatch, WordTokenizer, "decode_rows")
    scored, listed = Calls(monkeypatch, type(task), "score_tokens"), Calls(monkeypatch, type(task), "__call__")
    one_by_one = Calls(monkeypatch, WordTokenizer, "decode")
    envs.reset(seed=0)
    rng, ended = np.random.default_rng(0), []
    for _ in range(20):
        terminated = envs.step(rng.integers(6, size=16))[2]
        if terminated.any():
            ended.append(int(terminated.sum()))
    assert decoded.rows == scored.rows == ended and len(ended) > 10
    assert not listed.rows and not one_by_one.rows


def calls_of(step: Any) -> int:
    """The number of functions, of Python and of C, that a call of `step` calls."""
    count = 0

    def count_call(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        step()
    finally:
        sys.setprofile(None)
    return count


def bytes_of(step: Any) -> int:
    """The peak memory of a call of `step`, in bytes."""
    tracemalloc.start()
    try:
        step()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("measure", [calls_of, bytes_of])
def test_a_step_costs_the_same_after_any_prefix(measure: Any, sparse: bool) -> None:
    """The 3rd and the 200th token of a completion take the same number of calls and of bytes."""
    task = TextMDP(**words(reference=random_reference(4, 1, sparse), max_new_tokens=256, eos_token_id=[]))
    envs, taken = TextVectorEnv(task, 4), []
    _, info = envs.reset(seed=0)
    for _ in range(200):
        actions = info["action_mask"].argmax(axis=1)

        def step(actions: Any = actions) -> None:
            nonlocal info
            info = envs.step(actions)[-1]

        taken.append(measure(step))
    assert max(taken[100:]) <= 1.01 * max(taken[2:20])


def test_work_on_the_prefix_is_detected() -> None:
    """Control: a shaping term that loops over the completion so far."""

    def counting(transitions: Any) -> np.ndarray:
        return np.array([[float(sum(int(token) for token in range(time[0])))] for time in transitions.time])

    envs, taken = TextVectorEnv(TextMDP(**words(shaping=[counting], max_new_tokens=256)), 4), []
    envs.reset(seed=0)
    for _ in range(200):
        taken.append(calls_of(lambda: envs.step(np.ones(4, dtype=np.int64))))
    assert max(taken[100:]) > 1.01 * max(taken[2:20])
