"""Row i of `TextVectorEnv` equals a single environment; the oracle is Gymnasium's SyncVectorEnv, a loop over envs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import MODES, CallCounter, array_and_loop, compare_trajectories, masked_info
from tests.helpers.tasks import (
    PROMPTS,
    RandomPolicy,
    assert_same,
    golden,
    letter_values,
    make,
    random_reference,
    stories,
    tasks,
    words,
)
from textenv import TextMDP, TextVectorEnv


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), num_envs=st.integers(1, 4), seed=st.integers(0, 2**32), bound=st.booleans())
def test_rows_equal_single_envs(
    mode: AutoresetMode, arguments: dict[str, Any], num_envs: int, seed: int, bound: bool
) -> None:
    """Observations, rewards, terminations and infos (with final_obs and final_info) equal those of single envs."""
    policy = RandomPolicy(len(arguments["tokenizer"]), seed % 100) if bound else None
    ended = compare_trajectories(array_and_loop(arguments, num_envs, mode, policy), seed, steps=9)
    assert ended or arguments["max_new_tokens"] > 9


@pytest.mark.parametrize("mode", MODES)
def test_rows_equal_single_envs_on_a_real_model(mode: AutoresetMode, assets: Path) -> None:
    """The same on a Llama with a KV cache, prompts of different lengths, rows that are reset at different times."""
    arguments = stories(assets, max_new_tokens=3)
    every_third = [i for i in range(512) if i % 3 == 0]  # EOS tokens: some rows terminate early
    assert (
        compare_trajectories(
            array_and_loop(arguments | {"eos_token_id": every_third}, 3, mode), seed=4, steps=9, atol=1e-4
        )
        >= 4
    )


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10, deadline=None)
@given(arguments=tasks(), num_envs=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_gold_scores_equal_those_of_single_envs(
    mode: AutoresetMode, arguments: dict[str, Any], num_envs: int, seed: int
) -> None:
    """With a gold reward too every row equals a single env; gold scores are in final_info where a mode has it."""
    pair, num_scores = array_and_loop(arguments | {"gold_reward": golden}, num_envs, mode), 0
    step = pair[0].step

    def checked_step(actions: Any) -> Any:
        nonlocal num_scores
        result = step(actions)
        info = result[-1].get("final_info", {}) if mode == AutoresetMode.SAME_STEP else result[-1]
        assert info.get("_gold_score", np.zeros(num_envs, dtype=bool)).tolist() == result[2].tolist()
        assert "gold_score" not in result[-1] or mode != AutoresetMode.SAME_STEP
        if result[2].any():
            rows = list(zip(info["prompt"], info["completion"], info["gold_score"], result[2], strict=True))
            num_scores += sum(gold != 0 for _, _, gold, ended in rows if ended)
            assert all(gold == 0 for _, _, gold, ended in rows if not ended)
        return result

    pair[0].step = checked_step
    ended = compare_trajectories(pair, seed, steps=9)
    assert num_scores == ended > 0


@pytest.mark.parametrize("mode", MODES)
def test_the_comparison_detects_a_wrong_gold_score(mode: AutoresetMode) -> None:
    """Negative control: gold scores that are wrong in one row, and missing ones, fail the comparison."""
    right = words(max_new_tokens=1, gold_reward=letter_values)
    for wrong in ({"gold_reward": wrong_in_row_1}, {"gold_reward": None}):
        pair = [array_and_loop(right | wrong, 3, mode)[0], array_and_loop(right, 3, mode)[1]]
        with pytest.raises(AssertionError, match="gold_score"):
            compare_trajectories(pair, seed=0, steps=4)


@pytest.mark.parametrize("seeds", [[7, 7, 1], [2**63, 2**64 - 1, 0]])
def test_a_list_of_seeds_seeds_the_rows(seeds: list[int]) -> None:
    """reset(seed=[...]) gives row i the prompts of a single environment with seed i."""
    compare_trajectories(array_and_loop(words(), 3, AutoresetMode.NEXT_STEP), seed=0, steps=9, seeds=seeds)


def test_rows_draw_their_prompts_independently() -> None:
    """Rows seeded s, s + 1, ... share no stream of prompts, not even one shifted by a few episodes."""
    envs = TextVectorEnv(TextMDP(**words()), 40)
    drawn = []
    for i in range(40):
        envs.reset(seed=0 if i == 0 else None)
        drawn.append(envs.episodes.state.prompt.copy())
    prompts = np.array(drawn)  # [episode, row]
    for shift in range(3):  # 1,600 draws among 4 prompts: equal by chance in a quarter of the cases
        equal = (prompts[shift:, :-1] == prompts[: 40 - shift, 1:]).mean()
        assert 0.19 < equal < 0.31, shift
    assert (np.bincount(prompts.ravel(), minlength=4) > 320).all()


def test_reset_options_apply_to_every_row() -> None:
    """reset(options=...) starts all rows, or only those in the mask, in one state."""
    for mask in (None, np.array([True, False, True])):
        pair = array_and_loop(words(), 3, AutoresetMode.DISABLED)
        for envs in pair:
            envs.reset(seed=0)
        options = {"prompt": "b a b", "completion": "b"} | ({} if mask is None else {"reset_mask": mask})
        starts = [envs.reset(options=dict(options)) for envs in pair]
        assert_same(*([observation, masked_info(info)] for observation, info in starts))
        steps = [envs.step(np.array([1, 2, 3])) for envs in pair]
        assert_same(*([*step[:-1], masked_info(step[-1])] for step in steps))


def wrong_in_row_1(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """Wrong in the second row of a batch only."""
    return [score + 1e-9 * (row == 1) for row, score in enumerate(letter_values(prompts, completions, completion_ids))]


def test_the_comparison_detects_a_wrong_row() -> None:
    """Negative control: scores that are wrong in one row, other seeds, and a missing info key each fail it."""
    right = words(max_new_tokens=1)
    for arguments, shift in ((right | {"reward": wrong_in_row_1}, 0), (right, 1)):
        pair = [array_and_loop(arguments, 3, MODES[0])[0], array_and_loop(right, 3, MODES[0])[1]]
        reset = pair[0].reset
        pair[0].reset = lambda seed, reset=reset, shift=shift: reset(seed=seed + shift)
        with pytest.raises(AssertionError):
            compare_trajectories(pair, seed=0, steps=4)
    pair = array_and_loop(right, 2, MODES[0])
    pair[0]._final_info = lambda *_: {}
    with pytest.raises(AssertionError, match="score"):
        compare_trajectories(pair, seed=0, steps=4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_envs", [1, 2, 50])
def test_one_call_per_step_for_any_number_of_rows(mode: AutoresetMode, num_envs: int) -> None:
    """A step calls reference, policy and reward once each, with all rows (the reward: all completions that ended)."""
    reference, reward = CallCounter(random_reference(4, 0, sparse=False)), CallCounter(letter_values)
    policy = CallCounter(RandomPolicy(4))
    mdp = TextMDP(**words(reference=reference, reward=reward, max_new_tokens=2))
    envs = TextVectorEnv(mdp, num_envs, autoreset_mode=mode, policy=policy)
    reference.calls.clear()
    envs.reset(seed=0)
    assert reference.calls == [num_envs] and not policy.calls
    for step in (1, 2):
        envs.step(np.full(num_envs, 1))
        all_ended = step == 2 and mode != AutoresetMode.SAME_STEP  # then there is no next token
        assert reference.calls == [num_envs] * (step + 1 - all_ended)
        assert policy.calls == [num_envs] * step
        assert reward.calls == [num_envs] * (step == 2)


def test_rows_do_not_depend_on_each_other() -> None:
    """A row's rewards depend neither on the other rows' prompts nor on their lengths."""
    arguments = words(reference=random_reference(4, 3, sparse=False), prompts=PROMPTS)
    envs = TextVectorEnv(TextMDP(**arguments), 8)
    observation, _ = envs.reset(seed=1)
    assert len(set(observation["attention_mask"].sum(axis=1))) == 3
    steps = [np.random.default_rng(t).integers(1, 4, size=8) for t in range(3)]
    rewards = np.stack([envs.step(actions)[1] for actions in steps])
    for row in range(8):
        alone = make(arguments)
        start, _ = alone.reset(options={"prompt": [t for t in observation["input_ids"][row] if t]})
        assert start["input_ids"].tolist() == observation["input_ids"][row].tolist()
        assert [alone.step(int(actions[row]))[1] for actions in steps] == rewards[:, row].tolist()
    assert len(np.unique(rewards.sum(axis=0))) > 4  # negative control: the rows do differ


def test_later_steps_do_not_change_returned_arrays() -> None:
    """Observations, masks and infos that were returned keep their values in later steps."""
    for sparse in (False, True):
        arguments = words(reference=random_reference(4, 1, sparse=sparse))
        for mode in MODES[:2]:
            envs = TextVectorEnv(TextMDP(**arguments), 3, autoreset_mode=mode)
            observation, info = envs.reset(seed=0)
            returned, copies = [], []
            for _ in range(6):
                returned.append((observation, info))
                copies.append(({k: v.copy() for k, v in observation.items()}, {k: v.copy() for k, v in info.items()}))
                actions = info["action_mask"].argmax(axis=1)
                observation, _, _, _, info = envs.step(actions)
            assert_same(returned, copies)


def test_a_mask_that_a_user_changes_is_a_copy() -> None:
    """The environment's own mask is as it was. (One that cannot be written needs no copy.)"""
    for sparse in (False, True):
        envs = TextVectorEnv(TextMDP(**words(reference=random_reference(4, 1, sparse=sparse))), 3)
        _, info = envs.reset(seed=0)
        for _ in range(4):
            before = envs.action_masks().copy()
            if info["action_mask"].flags.writeable:
                info["action_mask"][:] = 0
            assert (envs.action_masks() == before).all()
            _, _, _, _, info = envs.step(before.argmax(axis=1))


def test_reset_to_a_completion_keeps_each_rows_own_prompt() -> None:
    """As a single environment with the same seed does; a refused completion changes nothing."""
    arguments: dict[str, Any] = {"vocab_size": 4, "max_new_tokens": 3, "num_prompts": 5}
    envs = gym.make_vec("textenv/Toy-v0", num_envs=6, **arguments)
    for seed in range(3):
        observations, _ = envs.reset(seed=seed, options={"completion": "a"})
        for row in range(6):
            alone = gym.make("textenv/Toy-v0", **arguments).reset(seed=seed + row, options={"completion": "a"})[0]
            assert np.array_equal(observations["input_ids"][row], alone["input_ids"])
        assert len(set(observations["input_ids"][:, 0].tolist())) > 1  # control: prompts differ
    before = envs.unwrapped.episodes.observation()["input_ids"]
    with pytest.raises(ValueError, match="leave a token to sample"):
        envs.reset(seed=0, options={"completion": "a a a"})
    assert np.array_equal(envs.unwrapped.episodes.observation()["input_ids"], before)


def test_large_seeds_and_reused_masks() -> None:
    """Seeds beyond 64 bits wrap around as in the single environment; changing a reset_mask later changes no info."""
    envs = gym.make_vec("textenv/Toy-v0", num_envs=2)
    large, small = (envs.reset(seed=[first, 3])[0]["input_ids"] for first in (2**64 + 1, 1))
    assert np.array_equal(large, small)
    mask = np.array([True, False])
    info = envs.reset(options={"reset_mask": mask})[1]
    mask[:] = True
    assert info["_action_mask"].tolist() == [True, False]
