"""`TextEnv` equals the plainest core, `tests.helpers.plain_env`, with every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import random_trajectory
from tests.helpers.fuzzed_tasks import PureLetters
from tests.helpers.plain_env import PlainEnv
from tests.helpers.tasks import RandomPolicy, assert_same, golden, random_reference, tasks, words
from textenv import TextEnv, TextMDP, TextVectorEnv


@settings(max_examples=60, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 2**32), gold=st.booleans(), bound=st.booleans(), pure=st.booleans())
def test_an_environment_equals_the_plainest_core(
    arguments: dict[str, Any], seed: int, gold: bool, bound: bool, pure: bool
) -> None:
    """Observations, rewards, terminations and infos: with and without masks, shaping, gold reward, policy, tables."""
    arguments |= {"gold_reward": golden if gold else None}
    arguments |= {"reward": PureLetters(arguments["prompts"])} if pure else {}
    policy = RandomPolicy(len(arguments["tokenizer"])) if bound else None
    pair = TextEnv(TextMDP(**arguments), policy), PlainEnv(TextMDP(**arguments), policy)
    assert_same(*(random_trajectory(env, seed) for env in pair))


@pytest.mark.parametrize("wrong", [{"kl_coef": 0.3}, {"max_new_tokens": 4}, {"gold_reward": golden}])
def test_the_comparison_sees_a_difference(wrong: dict[str, Any]) -> None:
    """Negative control: another beta, another length, a gold score that the other has not."""
    right = {"kl_coef": 0.25, "max_new_tokens": 3}
    pair = TextEnv(TextMDP(**words(**right))), PlainEnv(TextMDP(**words(**right | wrong)))
    with pytest.raises((AssertionError, ValueError)):
        assert_same(*(random_trajectory(env, 0) for env in pair))


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.array])
def test_actions_of_every_integer_type(kind: Any) -> None:
    """An action may be an integer of any type; another token gives another step."""
    env, same = (TextEnv(TextMDP(**words())) for _ in range(2))
    for each in (env, same):
        each.reset(seed=0)
    result = env.step(kind(2))
    assert_same(result, same.step(2))
    assert type(result[1]) is float and result[2] is False
    same.reset(seed=0)
    assert same.step(3)[0]["input_ids"].tolist() != result[0]["input_ids"].tolist()


@pytest.mark.parametrize("pure", [False, True])
def test_a_policy_may_be_bound_within_an_episode(pure: bool) -> None:
    """The episode continues, of a tabulated task too, and again without the policy."""
    arguments = words(max_new_tokens=6)
    arguments |= {"reward": PureLetters(arguments["prompts"])} if pure else {}
    pair, results = (TextEnv(TextMDP(**arguments)), PlainEnv(TextMDP(**arguments))), ([], [])
    for each, steps in zip(pair, results, strict=True):
        each.reset(seed=3)
        steps.append(each.step(1))
        each.bind_policy(lambda ids, mask: np.zeros((len(ids), 4)))
        steps.append(each.step(2))
        each.bind_policy(None)
        steps += [each.step(3), each.step(0)]
    assert_same(*results)
    assert "kl_policy" in results[0][1][-1]["reward_terms"] and "kl_policy" not in results[0][2][-1]["reward_terms"]


def test_the_kl_is_reported_where_it_is_known() -> None:
    """It is the whole completion's: not after a policy was bound, or another one, in the middle of it."""
    env = TextEnv(TextMDP(**words(max_new_tokens=3)), RandomPolicy(4))
    for rebind in (False, True):
        env.reset(seed=0)
        env.step(1)
        if rebind:
            env.bind_policy(RandomPolicy(4, 1))
        env.step(1)
        assert ("kl" in env.step(1)[-1]) is not rebind


class FailsOnce:
    """A reference that may raise, with or without masks, and a policy and a reward that write to their arguments."""

    def __init__(self, full_support: bool) -> None:
        self.table, self.full_support, self.fails = random_reference(4, 1, not full_support), full_support, False

    def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
        """The table's; the caller's arrays are overwritten."""
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        log_probs = self.table.log_probs(input_ids, attention_mask)
        input_ids[:], attention_mask[:] = 3, 1
        return log_probs


@pytest.mark.parametrize("full_support", [False, True])
@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_a_step_whose_reference_fails_can_be_taken_again(mode: AutoresetMode | None, full_support: bool) -> None:
    """The step raises and changes nothing, wherever in it the reference is called; the next one is the twin's."""

    def environment() -> Any:
        mdp = TextMDP(**words(reference=FailsOnce(full_support)))
        return TextEnv(mdp) if mode is None else TextVectorEnv(mdp, 3, autoreset_mode=mode)

    env, twin = environment(), environment()
    rng, failed = np.random.default_rng(0), 0
    results = [each.reset(seed=1) for each in (env, twin)]
    for _ in range(12):
        mask = np.atleast_2d(results[0][-1]["action_mask"])
        keys = rng.random(mask.shape)
        actions: Any = np.where(mask == 1, keys, -1.0).argmax(axis=1)
        actions = int(actions[0]) if mode is None else actions
        env.mdp.reference.fails = True
        try:
            env.step(actions)
            env.mdp.reference.fails = False  # every row was reset or had ended: no reference was asked
            results = [results[0], twin.step(actions)]
        except RuntimeError:
            failed += 1
            results = [each.step(actions) for each in (env, twin)]
            assert_same(*([*result[:-1], result[-1]["action_mask"]] for result in results))
        ended = np.atleast_1d(results[1][2])
        if mode is None and ended.any():
            results = [each.reset() for each in (env, twin)]
        elif mode == AutoresetMode.DISABLED and ended.any():
            options = {"reset_mask": ended.copy()}
            results = [each.reset(options=dict(options)) for each in (env, twin)]
            masks = env.action_masks().astype(np.int8)
            results[0][-1]["action_mask"] = masks
    assert failed > 3


def test_an_environment_can_be_rendered_after_a_reset_whose_reference_failed() -> None:
    """The episode that the reset began, without the rewards of the one before; the next reset succeeds."""
    env = TextEnv(TextMDP(**words(reference=FailsOnce(False))), render_mode="ansi")
    env.reset(seed=1)
    allowed = env.reset()[1]["action_mask"]
    env.step(int(np.flatnonzero(allowed)[-1]))
    assert "\n" in str(env.render())
    env.mdp.reference.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        env.reset()
    assert str(env.render()).startswith("prompt: ") and "\n" not in str(env.render())
    env.reset()
    prompt, choices = str(env.render()).split("\n")
    assert prompt.startswith("prompt: ") and choices.startswith("next: ")


def test_what_a_policy_or_a_term_writes_to_its_arguments_is_not_in_the_state() -> None:
    """They get copies, as the reference does."""

    def greedy(input_ids: Any, attention_mask: Any) -> Any:
        input_ids[:], attention_mask[:] = 3, 1
        return np.zeros((len(input_ids), 4))

    def overwriting(transitions: Any) -> Any:
        transitions.input_ids[:], transitions.attention_mask[:] = 3, 1
        return np.zeros(transitions.tokens.shape)

    env, plain = TextEnv(TextMDP(**words(shaping=[overwriting])), greedy), TextEnv(TextMDP(**words()))
    observations = [[each.reset(seed=0)[0], each.step(1)[0], each.step(2)[0]] for each in (env, plain)]
    assert_same(*observations)
