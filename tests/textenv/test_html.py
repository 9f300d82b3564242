"""HTML for notebooks: every text is shown and none is run, sizes are bounded, numbers are the object's."""

from __future__ import annotations

import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import textenv
from tests.helpers.html import Page
from tests.helpers.tasks import words
from textenv.data import printable
from textenv.html import MAX_CHARACTERS, block_html, number_text, table_html, text_html, tokens_html
from textenv.testing import Episode, play

NASTY = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "'><img src=x onerror=alert(1)>",
    "<!-- ",
    "]]>",
    "&lt;b&gt; &amp; &#60;",
    "\x1b[31mred\x00\r\n\t",
    "\u202egnirts\u2066",
    "שלום عربى",
    "$x$ \\(y\\)",
    "\ud800",
    "```**_",
]
texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=30))
numbers = st.one_of(st.none(), st.floats())


@given(st.lists(st.tuples(texts, numbers), max_size=6), texts)
def test_tokens_are_shown_with_their_numbers(tokens: list[tuple[str, float | None]], name: str) -> None:
    """The text of each is its printable spelling, also in its tooltip, and no other markup."""
    spellings, values = [token for token, _ in tokens], [value for _, value in tokens]
    page = Page(tokens_html(spellings, values, {name: values}))
    assert [text for text, *_ in page.tokens] == list(map(printable, spellings))
    for t, (_, lines, style) in enumerate(page.tokens):
        assert lines == [f"{t}: {printable(spellings[t])}", f"{printable(name)} {number_text(values[t], 6) or '-'}"]
        value = values[t]
        assert ("background" in style) == (value is not None and value == value and value != 0)
        assert not re.search(r"\b(nan|inf)\b", style)


@given(st.lists(st.tuples(texts, numbers), max_size=6), texts, texts)
def test_tables_are_shown(rows: list[tuple[str, float | None]], caption: str, title: str) -> None:
    """Each cell holds its text or its number, whatever they are."""
    page = Page(block_html(table_html([title, "x"], rows, caption=caption), caption))
    assert page.rows == [[printable(title), "x"], *([printable(text), number_text(x) or "-"] for text, x in rows)]
    assert page.text.endswith(printable(caption))


def test_control_markup_is_refused_by_the_parser() -> None:
    """Control: the parser of these tests finds what is not escaped."""
    for text in NASTY[:4]:
        with pytest.raises(AssertionError):
            Page(f'<span title="{text}" style="">{text}</span>')


def test_colours_tell_the_sign_and_the_size() -> None:
    """Positive is blue, negative orange, more opaque where larger, the strongest at `scale`."""
    styles = [style for _, _, style in Page(tokens_html("abcd", [1.0, -1.0, 0.5, 4.0], scale=2.0)).tokens]
    found = [re.findall(r"rgba\((\d+),\d+,\d+,([\d.]+)\);", style)[0] for style in styles]
    blue, orange = found[0][0], found[1][0]
    assert blue != orange and [colour for colour, _ in found] == [blue, orange, blue, blue]
    assert [float(opacity) for _, opacity in found] == pytest.approx([0.275, 0.275, 0.1375, 0.55], abs=1e-3)


def test_sizes_are_bounded() -> None:
    """Tokens, rows and characters beyond a limit are counted."""
    page = Page(tokens_html(["a"] * 1234, [1.0] * 1234))
    assert len(page.tokens) == 200 and page.text.endswith("… 1,034 more tokens")
    page = Page(table_html(["a"], [[1.0]] * 20))
    assert len(page.rows) == 10 and page.rows[-1] == ["… 12 more"]
    assert len(tokens_html(["<" * 10_000], [1.0])) < 6_000
    page = Page(text_html("<" * 10_000))
    assert page.text == "<" * MAX_CHARACTERS + f" … {10_000 - MAX_CHARACTERS:,} more characters"


@pytest.mark.parametrize("call", [lambda: tokens_html("ab", [1.0]), lambda: table_html(["a", "b"], [[1.0]])])
def test_lengths_must_be_equal(call: object) -> None:
    """One value per token, one cell per name."""
    with pytest.raises(ValueError):
        call()  # type: ignore[operator]


def test_a_number_has_four_digits() -> None:
    """Integers all of theirs; minus zero is zero; None is nothing."""
    numbers = [1 / 3, -0.0, 10_000, 1e10, float("nan"), None]
    assert list(map(number_text, numbers)) == ["0.3333", "0", "10,000", "1e+10", "nan", ""]


def test_an_episode_shows_its_numbers() -> None:
    """Tokens, the terms of each token's reward, score and return."""
    episode = play(gym.make("textenv/TajMahal-v0"), "where is the taj mahal", "it is in agra")
    page = Page(episode._repr_html_())
    assert [text for text, *_ in page.tokens] == episode.tokens == ["it", "is", "in", "agra", "<eos>"]
    for t, (_, lines, _) in enumerate(page.tokens):
        shown = dict(line.rsplit(" ", 1) for line in lines[1:])
        expected = {name: values[t] for name, values in episode.terms.items()}
        expected |= {"reward": episode.rewards[t], "log pi_ref": episode.ref_log_probs[t]}
        assert {name: float(x) for name, x in shown.items()} == pytest.approx(expected, rel=1e-5)
    header, *rows = page.rows
    assert header == ["token", "score", "kl_reference", "reward", "log pi_ref"]
    assert [float(row[3]) for row in rows] == pytest.approx(episode.rewards.tolist(), abs=1e-4)
    assert f"score 1, return {episode.rewards.sum():.4g}" in page.text and "finish reason: stop" in page.text


def test_an_episode_of_any_text_is_shown() -> None:
    """Also without names of its tokens, unfinished, and with a prompt of markup."""
    tokenizer = textenv.WordTokenizer(["<b>", "</script>", "\u202ex"])
    env = gym.make("textenv/Text-v0", **words(tokenizer=tokenizer, prompts=["<b> </script>"], max_new_tokens=3))
    page = Page(play(env, "<b> </script>", "</script> \u202ex")._repr_html_())
    assert page.text.startswith("prompt <b> </script>")
    assert [text for text, *_ in page.tokens] == ["</script>", r"\u202ex", "<eos>"]
    zeros = np.zeros(1)
    page = Page(Episode("x", "y", [7], zeros, {"score": zeros}, zeros, None, None, None)._repr_html_())
    assert page.tokens[0][0] == "<id 7>" and "not finished" in page.text and "score 0" not in page.text


def test_it_does_without_torch() -> None:
    """Importing it, and an episode, import neither torch nor transformers."""
    code = """
import sys, gymnasium as gym, textenv.html
from textenv import exact
from textenv.testing import play
env = gym.make("textenv/TajMahal-v0")
play(env, 0, "it is in agra")._repr_html_()
print(sorted({"torch", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
