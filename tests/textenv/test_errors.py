"""Broken tasks are refused when they are made, with a message that names the rule, the value and the cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers.tasks import make, random_reference, stories, words, zero
from textenv import TextEnv, TextMDP, TextVectorEnv, exact
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.shaping import length_penalty
from textenv.testing import play


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "at least one prompt.* none"),
        ({"prompts": ["a", ""]}, "at least one token, got ''.*drop it"),
        ({"prompts": ["a", "  "]}, "at least one token, got '  '.*drop it"),
        ({"prompts": ["a", 7]}, "must be a string, messages.*, got '7'"),
        ({"prompts": [{"prompt": "a", "x": 1}, {"prompt": "b"}]}, "prompt 1: .*first one's fields.*'x'.*got .*'b'"),
        ({"prompts": [{"text": "a"}]}, "field 'prompt'.*got .*\"text\""),
        ({"prompts": [{"prompt": "a", "completions": "b"}]}, "'completions' is an argument of rewards; rename"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, at least 1, got 2.5"),
        (
            {"prompts": ["a", "a b a"], "max_prompt_length": 2},
            "'a b a' has 3 tokens.* 2 .*max_prompt_length",
        ),
        ({"prompts": ["a", "a aple"]}, "'aple' is not in the vocabulary"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number, at least 1, got 0"),
        ({"kl_coef": -0.1}, r"kl_coef \(beta\).*>= 0, got -0.1; 0 switches"),
        ({"kl_coef": 1e-310}, "kl_coef.*got 1e-310; .*the smallest other value is 1e-30"),
        ({"kl_coef": float("nan")}, "kl_coef.*finite.*got nan"),
        ({"kl_coef": float("inf")}, "kl_coef.*finite.*got inf"),
        ({"eos_token_id": 4}, r"eos_token_id must be in 0 \.\. 3, .*got 4"),
        ({"reference": random_reference(5, 0, False)}, "vocabulary of 5 tokens, the tokenizer one of 4.*same"),
        ({"reward": [zero, zero], "reward_weights": [1.0]}, r"one finite number per function \(2\), got \[1.0\]"),
        ({"reward_weights": [float("nan")]}, "one finite number per function .*nan"),
        ({"shaping": [length_penalty(1.0), length_penalty(2.0)]}, "__name__ of its own.*'length', 'length'"),
    ],
)
def test_a_broken_task_is_refused(arguments: dict[str, Any], message: str) -> None:
    """Each broken argument is refused when the environment is made, single or batched."""
    for maker in (gym.make, gym.make_vec):
        with pytest.raises(ValueError, match=message):
            maker("textenv/Text-v0", **words(**arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": []}, r"^reward must be a reward function.*got \[\]"),
        ({"gold_reward": []}, r"^gold_reward must be a reward function.*got \[\]"),
        ({"reference": 3}, "reference must be None.*log_probs.*causal language model.*got int"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused(arguments: dict[str, Any], message: str) -> None:
    """An argument that is no reward or no reference is a TypeError that names the accepted types."""
    with pytest.raises(TypeError, match=message):
        TextMDP(**words(**arguments))


def test_text_v0_has_no_defaults() -> None:
    """Text-v0 without arguments names the required ones."""
    with pytest.raises(ValueError, match=r"pass tokenizer, prompts, reward to gym\.make"):
        gym.make("textenv/Text-v0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"vocab_size": 2}, "vocab_size >= 3.*got 2, 4, 2"), ({"num_prompts": 0}, "num_prompts >= 1, got 6, 4, 0")],
)
def test_a_toy_that_is_too_small_is_refused(arguments: dict[str, Any], message: str) -> None:
    """The error of Toy-v0 names its limits."""
    with pytest.raises(ValueError, match=message):
        gym.make("textenv/Toy-v0", **arguments)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: WordTokenizer("agra india").encode("agra indai"), "'indai' is not.*3 tokens. Did you mean 'india'"),
        (lambda: WordTokenizer([]), "at least one word"),
        (lambda: WordTokenizer(["a b"]), "empty or contain spaces, got 'a b'"),
        (lambda: WordTokenizer("a <eos>"), "'<eos>' must not be one of the words"),
        (lambda: TableReference(np.log([[0.5, 0.25], [0.5, 0.5]])), "sum to 1; row 0 sums to 0.75"),
        (lambda: TableReference(np.log([[0.5, 0.5], [0.9, 0.2]])), "sum to 1; row 1 sums to 1.1"),
        (lambda: TableReference(np.log(np.full((3, 2), 0.5))), r"1 row or one row per token, got shape \(3, 2\)"),
        (lambda: TableReference(np.log([[0.5, 0.5]]), [[0, 1]]), r"next_state.*values in 0 \.\. 0, got .* 0 \.\. 1"),
        (
            lambda: TableReference.from_completions(WordTokenizer("a b"), {"a": {"b": -1.0, "a": 2.0}}),
            "must not be negative, got -1.0 for 'b'",
        ),
        (lambda: TextVectorEnv(TextMDP(**words()), 0), "num_envs must be a whole number, at least 1, got 0"),
        (lambda: TextMDP(**words(reward="count")), "^reward must be a function.*got 'count'"),
        (lambda: TextMDP(**words(gold_reward="count")), "^gold_reward must be a function.*got 'count'"),
        (
            lambda: TextEnv(TextMDP(**words()), render_mode="rgb"),
            "render_mode must be .*'ansi'.* got 'rgb'",
        ),
        (lambda: play(make(words()), 0, "a a a a"), "4 tokens, more than max_new_tokens = 3"),
        (lambda: play(make(words()), 0, [0, 1]), r"must end at its last token, got \[0, 1\], which ends at token 0"),
        (lambda: play(make(words()), 0, []), "at least one token to play, got none"),
    ],
)
def test_a_broken_part_is_refused(construct: Any, message: str) -> None:
    """The errors of tokenizer, table, environment and `play` name the rule and the value."""
    with pytest.raises(ValueError, match=message):
        construct()


@pytest.mark.parametrize("name", ["max_new_tokens", "max_prompt_length", "reward_tries", "num_envs"])
def test_one_rule_for_every_count(name: str) -> None:
    """A whole number of any kind, which becomes Python's; the largest is large."""

    def count(value: Any) -> Any:
        if name == "num_envs":
            return TextVectorEnv(TextMDP(**words()), value).num_envs
        mdp = TextMDP(**words(**{name: value}))
        found = {"max_new_tokens": mdp.max_new_tokens, "max_prompt_length": 3, "reward_tries": mdp.reward.tries}
        return found[name]

    for value in (3, 3.0, np.int64(3), np.float32(3)):
        assert type(count(value)) is int and count(value) == 3
    for wrong in (0, -1, 2.5, True, "3", None, float("nan"), float("inf"), 10**30):
        if wrong is None and name == "max_prompt_length":
            continue
        with pytest.raises(ValueError, match=f"^{name} must be a whole number, at (least 1|most [0-9]+), got "):
            count(wrong)


def test_a_model_must_have_the_tokenizers_vocabulary(assets: Path) -> None:
    """A language model with fewer logits than the tokenizer has tokens is refused, and one with too short a context."""
    arguments = stories(assets)
    large = WordTokenizer([f"w{i}" for i in range(600)])
    with pytest.raises(ValueError, match=r"vocabulary of 512 tokens, the tokenizer one of 601.*same"):
        TextMDP(**arguments | {"tokenizer": large, "prompts": ["w1"]})
    with pytest.raises(ValueError, match=r"\d+ \+ 510 tokens, more than the reference's context of 512; shorten"):
        TextMDP(**arguments | {"max_new_tokens": 510})


def test_a_prompt_beyond_the_context_is_not_read(assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before the reference gets it: that would take long."""
    arguments = stories(assets)
    monkeypatch.setattr("textenv.mdp.first_tokens", lambda *_: pytest.fail("the reference was called"))
    with pytest.raises(ValueError, match="more than the reference's context of 512"):
        TextMDP(**arguments | {"prompts": ["once " * 600]})


def test_a_larger_vocabulary_is_not_mistaken_for_a_padded_one(assets: Path) -> None:
    """A model with many more tokens than the tokenizer has another vocabulary; a few more are padding."""
    few = WordTokenizer("is it yes no")
    with pytest.raises(ValueError, match="vocabulary of 512 tokens, the tokenizer one of 5.*token for token"):
        TextMDP(few, ["is it"], zero, assets / "stories260k")
    many = WordTokenizer([f"w{i}" for i in range(500)])
    assert TextMDP(many, ["w1"], zero, assets / "stories260k").vocab_size == 501


def test_a_prompt_without_a_completion_is_refused() -> None:
    """The error names a prompt after which every token is masked; without it the optimum would be nan."""
    tokenizer = WordTokenizer("a b c")
    reference = TableReference.from_completions(tokenizer, {"a": {"b": 1.0}})
    with pytest.raises(ValueError, match="'c a'"):
        exact.solve(TextMDP(tokenizer, ["a", "c a"], zero, reference, max_new_tokens=3))


class BrokenReference:
    """A reference that claims full support and returns one value for every token."""

    full_support = True

    def __init__(self, value: float, width: int) -> None:
        self.value, self.width = value, width

    def log_probs(self, input_ids: Any, attention_mask: Any) -> np.ndarray:
        return np.full((len(input_ids), self.width), self.value)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (BrokenReference(-np.log(9), 9), r"log-probabilities of shape \[B, 4\]"),
        (BrokenReference(3.0, 4), "sum to 80.34, not to 1"),
        (BrokenReference(np.nan, 4), "sum to nan, not to 1"),
    ],
)
def test_a_broken_reference_is_refused(reference: BrokenReference, message: str) -> None:
    """Another shape, or values that are no log-probabilities, are refused when the task is made."""
    with pytest.raises(ValueError, match=message):
        TextMDP(**words(reference=reference))


@pytest.mark.parametrize("name", ["score", "kl_reference", "kl_policy", "illegal"])
def test_a_shaping_term_may_not_have_the_name_of_a_reward_term(name: str) -> None:
    """The names of the reward's own terms are reserved."""

    def term(transitions: Any) -> np.ndarray:
        return np.zeros(transitions.tokens.shape)

    term.__name__ = name
    with pytest.raises(ValueError, match=f"other than score, kl_reference, kl_policy and illegal, got.*{name}"):
        TextMDP(**words(shaping=[term]))


def test_play_is_for_a_single_environment() -> None:
    """A batched one is refused; the error names it."""
    with pytest.raises(TypeError, match=r"gym\.make.*TextVectorEnv"):
        play(gym.make_vec("textenv/Toy-v0", num_envs=2), "a", "b")  # type: ignore[arg-type]


def test_messages_name_the_value_once() -> None:
    """A message contains the refused value once, and no line break."""
    with pytest.raises(ValueError) as error:
        TextMDP(**words(kl_coef=-3.25))
    assert len(re.findall(re.escape("-3.25"), str(error.value))) == 1 and "\n" not in str(error.value)
