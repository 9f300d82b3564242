"""Words, pairs, characters, beginnings and endings: each counted as a plain count does it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.reward_check.features import FEATURES, sentences_of, words_of
from textenv.reward_check.items import Item, count_items, items_of

TEXT = "He ran. He ran!"


def test_the_items_of_a_text() -> None:
    """Words in lower case, with runs of punctuation; the first word and what is last."""
    found = items_of(TEXT)
    assert (found[Item("word", "he")], found[Item("word", "ran")], found[Item("word", "!")]) == (2, 2, 1)
    assert found[Item("pair of words", "he ran")] == 2 and found[Item("pair of words", "ran .")] == 1
    assert found[Item("character", "H")] == 2 and Item("character", " ") not in found
    assert {item.text for item in found if item.kind == "beginning"} == {"He"}
    assert {item.text for item in found if item.kind == "ending"} == {"ran!", "!"}
    assert not items_of("") and not items_of("   ")


@given(st.lists(st.text(alphabet="ab .!\n\u00e9", max_size=12), min_size=5, max_size=12))
def test_counts_are_those_of_each_text(texts: list[str]) -> None:
    """Items that five texts have, and no others. Control: an item of four is left out."""
    items, counts = count_items(texts)
    for item, column in zip(items, counts.T, strict=True):
        assert column.tolist() == [items_of(text)[item] for text in texts] and (column > 0).sum() >= 5
        if item.kind == "character":
            assert column.tolist() == [text.count(item.text) for text in texts]
    assert Item("character", "z") not in count_items(["z"] * 4 + texts)[0]
    assert Item("character", "z") in count_items(["z"] * 5 + texts)[0]


def test_an_item_is_added_where_it_belongs() -> None:
    """A beginning at the start, all others at the end."""
    assert Item("beginning", "So").added_to("it is", 2) == "So So it is"
    assert Item("word", "so").added_to("it is") == "it is so"


def test_features_by_hand() -> None:
    """Of a text whose counts are known."""
    prompt, text = "The clever fox", 'A clever fox ran. A clever fox ran.\n"OK!" :) 42 \u00e9'
    found = {name: count(prompt, text) for name, count in FEATURES.items()}
    assert found == {
        "characters": len(text),
        "different words": len(set(words_of(text))),
        "letters of a word": sum(map(len, words_of(text))) / len(words_of(text)),
        "repeated words": 5,
        "repeated pairs of words": 4,
        "repeated sentences": 1,
        "words of the prompt": 2,
        "punctuation marks": 5,
        "exclamation marks": 1,
        "question marks": 0,
        "emoticons": 1,
        "digits": 2,
        "upper-case letters": 4,
        "other than ASCII": 1,
        "lines": 2,
    }
    assert sentences_of(" A b. C!  ") == ["A b.", "C!"] and sentences_of("  ") == []


@pytest.mark.parametrize(("text", "count"), [(":)", 1), ("fine :-( or ;) ?", 2), ("so :D :P", 2), ("XD <3", 2),
                                             ("good:)", 1), (":):)", 2), ("\U0001f600\u2764", 2)])  # fmt: skip
def test_emoticons_are_counted(text: str, count: int) -> None:
    """Alone, after a text, several without a space."""
    assert FEATURES["emoticons"]("", text) == count


@pytest.mark.parametrize(
    "text",
    ["expect", "explain XP", "http://a.org", "8/10", "1:3", "10:30", "(6x4)", "f(x)=(y)", "a=b", "x*y", "8)", "C:\\Dir",
     "note:Do it", "x=D2", "1<32", "a[x]", "if x:\n    pass"],
)  # fmt: skip
def test_words_numbers_and_code_are_no_emoticons(text: str) -> None:
    """Their characters look like eyes and mouths."""
    assert FEATURES["emoticons"]("", text) == 0


def test_features_of_an_empty_completion_are_numbers() -> None:
    """No division by nothing."""
    assert all(count("a prompt", "") == 0 for count in FEATURES.values())
