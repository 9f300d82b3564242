"""A walk over the tree says, to the last digit, what stepping says: SyncVectorEnv of single environments, which never
walk, is the oracle."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.envs import MODES, both, compare, played, told
from tests.helpers.tasks import RandomPolicy, assert_same, golden, letter_values, random_reference, tasks, words
from textenv import InvalidAction, TextEnv, TextMDP, TextVectorEnv
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.shaping import length_penalty
from textenv.stepping import EpisodeBatch, TabulatedBatch


class OfTokens:
    """A reward in both forms: the arrays are made into the lists that the plain function takes."""

    def __init__(self, function: Any, prompts: list[str]) -> None:
        self.function, self.prompts = function, prompts

    def __call__(self, **texts: Any) -> list[float]:
        """From lists."""
        scores: list[float] = self.function(**texts)
        return scores

    def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
        """From arrays."""
        ids = [row[:n].tolist() for row, n in zip(tokens, length, strict=True)]
        return np.array(self.function([self.prompts[i] for i in prompt], [""] * len(ids), ids))


def small(gold: bool = False, **arguments: Any) -> dict[str, Any]:
    """Arguments of a task that is walked."""
    arguments = words() | arguments | {"shaping": ()}
    prompts = arguments["prompts"]
    arguments["gold_reward"] = OfTokens(golden, prompts) if gold else None
    return arguments | {"reward": OfTokens(letter_values, prompts)}


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), num_envs=st.integers(1, 4), seed=st.integers(0, 2**32), gold=st.booleans())
def test_a_walk_says_what_steps_say(
    mode: AutoresetMode, arguments: dict[str, Any], num_envs: int, seed: int, gold: bool
) -> None:
    """Observations, masks, rewards, ends and infos, dense and sparse, with and without a gold reward."""
    pair = both(small(gold, **arguments), num_envs, mode)
    assert type(pair[0].episodes) is TabulatedBatch
    assert compare(pair, seed, steps=9) > 0


def test_the_comparison_notices_a_wrong_edge() -> None:
    """Negative control: a score, a log-probability and a child that are off are each noticed."""
    for table, value in (("scores", 1e-9), ("ref_log_prob", 1e-9), ("child", 1)):
        pair = both(small(), 3, AutoresetMode.NEXT_STEP)
        getattr(pair[0].episodes, table)[: -pair[0].mdp.vocab_size] += value
        with pytest.raises((AssertionError, IndexError)):
            compare(pair, seed=0, steps=12)


def legal(envs: TextVectorEnv, rng: np.random.Generator) -> Any:
    keys = rng.random((envs.num_envs, envs.mdp.vocab_size))
    return np.where(envs.episodes.action_mask() == 1, keys, -1.0).argmax(axis=1)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("leave", ["policy", "options"])
def test_a_walk_may_be_left_in_the_middle(leave: str, sparse: bool) -> None:
    """A policy that is bound, or a state that is named, is served by steps that go on with the same texts."""
    arguments = small(max_new_tokens=4, reference=random_reference(4, 1, sparse))
    walked, stepped = (TextVectorEnv(TextMDP(**arguments), 5) for _ in range(2))
    assert isinstance(walked.episodes, TabulatedBatch)
    stepped.episodes = stepped._first_episodes = EpisodeBatch(stepped.mdp, 5)
    said: list[list[Any]] = [[], []]
    for envs, heard in zip((walked, stepped), said, strict=True):
        rng = np.random.default_rng(0)
        envs.reset(seed=3)
        for _ in range(7):
            step = envs.step(legal(envs, rng))
            heard.append([*step[:-1], told(step[-1])])
        if leave == "policy":
            envs.bind_policy(RandomPolicy(4))
        else:
            rows = np.array([True, False, True, False, False])
            heard.append(list(envs.reset(options={"prompt": "b a b", "reset_mask": rows}))[:1])
        assert type(envs.episodes) is EpisodeBatch
        for _ in range(9):
            step = envs.step(legal(envs, rng))
            heard.append([*step[:-1], told(step[-1])])
        envs.bind_policy(None)
    assert_same(*said)


def test_a_forbidden_token_is_refused_and_changes_nothing() -> None:
    """With the words of the plain environment; the walk stands where it stood."""
    arguments = small(reference=random_reference(4, 1, sparse=True))
    envs, plain = (TextVectorEnv(TextMDP(**arguments | more), 3) for more in ({}, {"reward": letter_values}))
    assert (type(envs.episodes), type(plain.episodes)) == (TabulatedBatch, EpisodeBatch)
    errors = []
    for each in (envs, plain):
        _, info = each.reset(seed=0)
        actions = info["action_mask"].argmax(axis=1)
        actions[1] = info["action_mask"][1].argmin()
        before = each.episodes.observation()
        with pytest.raises(InvalidAction, match="is masked") as error:
            each.step(actions)
        errors.append(str(error.value))
        assert_same(each.episodes.observation(), before)
        with pytest.raises(InvalidAction, match=r"must be in 0 \.\. 3, got -1"):
            each.step(np.array([0, -1, 0]))
    assert errors[0] == errors[1]
    with pytest.raises(gym.error.ResetNeeded):
        TextVectorEnv(TextMDP(**arguments), 2).step(np.zeros(2, dtype=int))


@pytest.mark.parametrize(
    "more",
    [
        {"reward": letter_values},
        {"gold_reward": golden},
        {"shaping": [length_penalty(0.25)]},
        {"max_new_tokens": 30},
        {"reference": type("Own", (type(random_reference(4, 0, False)),), {})(np.log(np.full((1, 4), 0.25)))},
    ],
)
def test_what_is_not_walked(more: dict[str, Any]) -> None:
    """Rewards that might say something else the next time, shaping, many texts, references of one's own."""
    assert type(TextVectorEnv(TextMDP(**small() | more), 2).episodes) is EpisodeBatch


def test_adaptive_beta_is_paid_at_once() -> None:
    """What is written down is log pi_ref; beta may change between two steps."""
    envs = TextVectorEnv(TextMDP(**small(kl_coef=0.5)), 2)
    envs.reset(seed=0)
    envs.mdp.kl_coef = 2.0
    info = envs.step(np.array([1, 2]))[-1]
    assert info["reward_terms"]["kl_reference"].tolist() == (2.0 * info["ref_log_prob"]).tolist()


@settings(max_examples=25, deadline=None)
@given(arguments=tasks(), seed=st.integers(0, 2**32), gold=st.booleans())
def test_a_single_text_is_told_again_what_it_was_told(arguments: dict[str, Any], seed: int, gold: bool) -> None:
    """What is remembered of texts that were written before is what a reward of lists says of each anew."""
    remembers = TextEnv(TextMDP(**small(gold, **arguments)))
    anew = TextEnv(TextMDP(**arguments | {"shaping": (), "gold_reward": golden if gold else None}))
    assert_same(played(remembers, seed, steps=40), played(anew, seed, steps=40))
    assert remembers.episodes.known and not anew.episodes.known


def test_a_text_that_is_known_is_not_scored_again() -> None:
    """Each of the few texts once, however often it is written; a prompt that is not in the list every time."""
    env, asked = TextEnv(TextMDP(**small(max_new_tokens=1))), []
    score = env.mdp.score
    env.mdp.score = lambda finished: (asked.append(len(finished)), score(finished))[1]  # type: ignore[method-assign]
    for options in ({"prompt": 0}, {"prompt": 0}, {"prompt": 1}, {"prompt": "a a"}, {"prompt": "a a"}):
        env.reset(options=options)
        env.step(1)
    assert len(asked) == 4
    env.reset(options={"prompt": 0})
    info = env.step(1)[-1]
    info["score"] = 100.0  # what is handed out is the caller's
    env.reset(options={"prompt": 0})
    assert env.step(1)[-1]["score"] != 100.0 and len(asked) == 4


def test_a_walk_goes_on_after_a_whole_reset() -> None:
    """A refused reset changes nothing; a named state and a bound policy are left with the next whole reset."""
    envs, plain = (TextVectorEnv(TextMDP(**small() | more), 3) for more in ({}, {"reward": letter_values}))
    with pytest.raises(ValueError, match="options are"):
        envs.reset(options={"promt": 0})
    assert type(envs.episodes) is TabulatedBatch
    said: list[list[Any]] = [[], []]
    for each, heard in zip((envs, plain), said, strict=True):
        heard.append(each.reset(seed=1, options={"prompt": 1})[0])  # the streams of prompts go on from here
        heard += [each.reset()[0], each.reset()[0]]
        each.step(np.array([1, 2, 3]))
        heard.append(each.reset(options={"prompt": 1, "completion": "a"})[0])
        heard.append(each.step(np.array([1, 2, 3]))[:-1])
        heard.append(each.reset()[0])
        each.bind_policy(RandomPolicy(4))
        heard.append(each.step(np.array([1, 2, 3]))[:-1])
        each.bind_policy(None)
        heard += [each.reset()[0], each.step(np.array([1, 2, 3]))[:-1]]
    assert type(envs.episodes) is TabulatedBatch
    assert_same(*said)


def test_wide_tables_are_not_written_down() -> None:
    """Few texts over many words: what counts is the tables' size."""
    vocab_size = 2000
    log_probs = np.full((1, vocab_size), -np.inf)
    log_probs[0, 1:3] = np.log(0.5)
    tokenizer = WordTokenizer([f"w{i}" for i in range(vocab_size - 1)])
    task = small() | {"tokenizer": tokenizer, "prompts": ["w0"], "reference": TableReference(log_probs)}
    task["reward"] = OfTokens(letter_values, ["w0"])
    for length, kind in ((4, TabulatedBatch), (13, EpisodeBatch)):
        assert type(TextVectorEnv(TextMDP(**task | {"max_new_tokens": length}), 2).episodes) is kind
