"""The texts of a reward's source, wherever a function has them, and texts that match its regular expressions."""

from __future__ import annotations

import functools
import re
import warnings
from json import loads
from typing import Any

import pytest

from tests.helpers.classifiers import random_classifier, word_tokenizer
from textenv.reward_check.literals import LONGEST, MOST, literals_of
from textenv.rewards import RewardModel, vader

GLOBAL = ["a global word"]
PATTERN = re.compile(r"answer: \d+")


def plain(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
    """Not this text."""
    return [float("a constant" in text or any(word in text for word in GOOD["words"])) for text in completions]


GOOD = {"words": {"in a set"}}


class Judge:
    """An object with a word in an attribute, and another model that is not searched."""

    def __init__(self) -> None:
        self.word, self.model = "an attribute", object()
        self.again = self.__call__  # a loop

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        """Not this text."""
        return [float(self.word in text or "in a method" in text) for text in completions]


def closure(word: str) -> Any:
    """A function that has a word in its closure, and one in a function inside of it."""

    def score(text: str) -> float:
        return float(word in text or "inside" in text)

    return lambda prompts, completions, completion_ids: [score(text) for text in completions]


def with_pattern(prompts: Any, completions: Any, completion_ids: Any, word: str = "") -> list[float]:
    """Not this text."""
    return [float(bool(PATTERN.search(text)) or GLOBAL[0] in text) for text in completions]


@pytest.mark.parametrize(
    ("function", "texts"),
    [
        (plain, {"a constant", "in a set"}),
        (Judge(), {"an attribute", "in a method"}),
        (Judge().__call__, {"in a method"}),
        (closure("a cell"), {"a cell", "inside"}),
        (with_pattern, {"a global word", "answer: 7"}),
        (functools.partial(with_pattern, word="an argument"), {"an argument", "a global word"}),
        (len, set()),
        (vader, set()),
    ],
)
def test_texts_are_found_where_functions_have_them(function: Any, texts: set[str]) -> None:
    """And no docstrings, which are no texts that it looks for."""
    found = literals_of(function)
    assert texts <= set(found) and len(found) <= MOST
    assert not any("Not this text" in text for text in found)


@pytest.mark.parametrize(
    "pattern",
    [
        r"SCORE: *10|\[\[A\]\]",
        r"^\s*yes\b",
        r"(?i)final answer\??",
        r"\\boxed\{\d+\}",
        r"[A-D]\)",
        r"<b>(.*)</b>",
        r"ha{2,3}!",
        r"\w+@\w+\.com",
    ],
)
def test_a_text_matches_a_regular_expression(pattern: str) -> None:
    """One beside the expression itself. Control: of what is no expression there is none."""
    function = eval(
        f"lambda prompts, completions, completion_ids: [bool(re.search({pattern!r}, y)) for y in completions]"
    )
    found = [text for text in literals_of(function) if text != pattern]
    assert any(re.search(pattern, text) for text in found), found
    assert set(literals_of(closure("no expression"))) == {"no expression", "inside"}  # control


@pytest.mark.parametrize(
    "pattern", ["a{99999999999999999999}", "x{300000000}", "[[A]]", "(?i", "(a{60}){60}", "a" * 60]
)
def test_no_text_is_too_much(pattern: str) -> None:
    """Repeats that overflow or fill the memory, and sets that Python warns of: no error, no warning, no long text."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = literals_of(closure(pattern))
    assert pattern in found and all(len(text) <= LONGEST for text in found)


def reads_json(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
    """Parses completions by a library."""
    return [float(loads(text) == "a grade" or helper(text)) for text in completions]


def helper(text: str) -> bool:
    """A function of the reward's own package."""
    return "of a helper" in text


def test_texts_of_libraries_are_not_those_of_the_reward() -> None:
    """A helper's come after its own. Control: the library's function has texts."""
    assert literals_of(reads_json) == ["a grade", "of a helper"]
    assert "Unexpected UTF-8 BOM (decode using utf-8-sig)" in literals_of(loads)  # type: ignore[arg-type]  # control


def test_what_is_no_expression_and_what_is_long_is_left_out() -> None:
    """Without an error."""
    function = closure("(unbalanced [" + "x" * 20)
    assert "(unbalanced [" + "x" * 20 in literals_of(function)
    assert not any(len(text) > LONGEST for text in literals_of(closure("x" * (LONGEST + 1))))
    assert len(literals_of(closure("w"))) < len(literals_of(functools.partial(plain, *map(str, range(99))))) <= MOST


def test_a_reward_model_looks_for_no_text() -> None:
    """The words of its code are of its errors. Control: an object of a class elsewhere has texts."""
    model = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    assert literals_of(model) == []
    assert literals_of(Judge()) != []  # type: ignore[arg-type]
