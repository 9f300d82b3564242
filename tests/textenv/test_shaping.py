"""Shaping terms: whole completions equal single steps, and each term has its documented values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import (
    SHAPING,
    hashed_potential,
    make,
    mdp,
    random_reference,
    words,
    zero,
)
from textenv import TextMDP
from textenv.shaping import (
    Transitions,
    length_penalty,
    missing_eos_penalty,
    potential_based,
    repetition_penalty,
    shaping_name,
)
from textenv.testing import play


@st.composite
def finished(draw: Any) -> tuple[TextMDP, list[int], list[list[int]]]:
    """Prompts and finished completions of different lengths, ended by EOS or by the limit."""
    horizon = draw(st.integers(1, 5))
    task = mdp(max_new_tokens=horizon)
    count = draw(st.integers(1, 4))
    completions = []
    for _ in range(count):
        tokens = draw(st.lists(st.integers(1, 3), max_size=horizon))
        completions.append(tokens + [0] * (len(tokens) < horizon))
    return task, draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)), completions


def whole(task: TextMDP, prompts: list[int], completions: list[list[int]], padding: int = 0) -> Transitions:
    """The [B, T] transitions of completions from their initial states; `padding` is the token after the ends."""
    longest = max(map(len, completions))
    state = task.empty_state(len(completions))
    task.reset_rows(state, np.arange(len(completions)), np.array(prompts))
    tokens = np.array([ids + [padding] * (longest - len(ids)) for ids in completions])
    mask = np.array([[t < len(ids) for t in range(longest)] for ids in completions])
    return task.transitions(state, tokens, mask)


def stepped(task: TextMDP, term: Any, prompts: list[int], completions: list[list[int]]) -> list[list[float]]:
    """The term's values in an environment that is stepped token by token."""
    arguments = words(max_new_tokens=task.max_new_tokens, shaping=[term])
    return [
        play(make(arguments), prompt, completion).terms[shaping_name(term)].tolist()
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


@pytest.mark.parametrize("term", [*SHAPING, potential_based(hashed_potential, gamma=0.5)])
@settings(max_examples=20, deadline=None)
@given(drawn=finished(), padding=st.integers(0, 3))
def test_shaping_of_whole_completions_equals_stepping(term: Any, drawn: Any, padding: int) -> None:
    """Each term of whole completions [B, T] equals that of single steps, whatever tokens follow the ends."""
    task, prompts, completions = drawn
    transitions = whole(task, prompts, completions, padding)
    values = np.where(transitions.mask, term(transitions), 0.0)
    for row, expected in enumerate(stepped(task, term, prompts, completions)):
        assert values[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-12)
        assert not values[row, len(expected) :].any()


@settings(max_examples=30, deadline=None)
@given(drawn=finished(), cut=st.integers(0, 1), padding=st.integers(0, 3))
def test_reward_terms_of_whole_completions_equal_stepping(drawn: Any, cut: int, padding: int) -> None:
    """`reward_terms` of completions [B, T] equal those of single steps: score once, zero after the end."""
    task, prompts, completions = drawn
    completions = [ids[: max(1, len(ids) - cut)] for ids in completions]  # cut: completions that are not finished
    reference = random_reference(4, 0, sparse=False)
    env = make(words(max_new_tokens=task.max_new_tokens, reference=reference, shaping=SHAPING))
    episodes = [play(env, prompt, ids) for prompt, ids in zip(prompts, completions, strict=True)]
    task = env.unwrapped.mdp
    transitions = whole(task, prompts, completions, padding)
    log_probs = np.full(transitions.mask.shape, -99.0)
    log_probs[transitions.mask] = np.concatenate([episode.ref_log_probs for episode in episodes])
    scores = np.array([7.0 if episode.score is None else episode.score for episode in episodes])  # 7: must be ignored
    terms = task.reward_terms(transitions, log_probs, scores, log_probs)
    assert terms.pop("kl_policy").tolist() == (-terms["kl_reference"]).tolist()
    for row, episode in enumerate(episodes):
        length = len(completions[row])
        for name, values in terms.items():
            assert values[row, :length] == pytest.approx(episode.terms[name], abs=1e-12), name
            assert not values[row, length:].any(), name


@settings(max_examples=30, deadline=None)
@given(drawn=finished())
def test_potential_based_shaping_telescopes(drawn: Any) -> None:
    """For every completion the sum of gamma Phi(s') - Phi(s) is -Phi(s_0); with gamma 1/2, discounted, as well."""
    task, prompts, completions = drawn
    first = hashed_potential(task.prompts.input_ids[prompts], task.prompts.attention_mask[prompts])
    for gamma in (1.0, 0.5):
        terms = stepped(task, potential_based(hashed_potential, gamma), prompts, completions)
        returns = [sum(gamma**t * r for t, r in enumerate(rewards)) for rewards in terms]
        assert returns == pytest.approx((-first).tolist(), abs=1e-12)


def test_a_term_that_is_not_a_potential_does_not_telescope() -> None:
    """Negative control: the length penalty's sum depends on the completion."""
    terms = stepped(mdp(), length_penalty(0.25), [0, 0], [[1, 0], [0]])
    assert sum(terms[0]) != sum(terms[1])


@pytest.mark.parametrize(
    ("term", "completion", "rewards"),
    [
        (length_penalty(0.5), "a b", [-0.5, -0.5, -0.5]),
        (length_penalty(0.5), "a b c", [-0.5, -0.5, -0.5]),
        (repetition_penalty(2.0), "a a a", [0, -2.0, -2.0]),
        (repetition_penalty(2.0), "a b a", [0, 0, -2.0]),
        (repetition_penalty(2.0), "c b", [0, 0, 0]),  # after the prompt "b a b": tokens of the prompt do not count
        (missing_eos_penalty(3.0), "a b c", [0, 0, -3.0]),
        (missing_eos_penalty(3.0), "a b", [0, 0, 0]),
        (missing_eos_penalty(3.0), "", [0]),
    ],
)
def test_shaping_terms_have_the_documented_values(term: Any, completion: str, rewards: list[float]) -> None:
    """Length: each token, EOS too. Repetition: from the second time, in the completion. Missing EOS: at the limit."""
    env = make(words(prompts=["b a b"], reward=zero, kl_coef=0.0, shaping=[term]))
    episode = play(env, 0, completion)
    assert episode.rewards.tolist() == rewards == episode.terms[shaping_name(term)].tolist()


def test_shaping_continues_from_a_state_of_reset() -> None:
    """In a state made by reset, shaping has the completion so far: the last reward is the same as after stepping."""
    for term in SHAPING:
        env = make(words(shaping=[term]))
        expected = play(env, 0, [2, 1, 2]).rewards[-1]
        env.reset(options={"prompt": 0, "completion": [2, 1]})
        assert env.step(2)[1] == expected


def test_repetition_is_found_in_several_steps_at_once() -> None:
    """Tokens of one call repeat each other, in their order, and those of the state."""
    task = mdp(shaping=[repetition_penalty(2.0)], max_new_tokens=5)
    state = task.make_state(0, [2])
    transitions = task.transitions(state, np.array([[1, 2, 1, 1]]), np.ones((1, 4), dtype=np.bool_))
    assert task.shaping_terms(transitions)[shaping_name(task.shaping[0])].tolist() == [[0.0, -2.0, -2.0, -2.0]]
