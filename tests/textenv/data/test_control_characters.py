"""Control characters of any text are shown as escapes; every other character is unchanged."""

from __future__ import annotations

import unicodedata

import gymnasium as gym
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import words
from textenv.data import WordTokenizer, printable

BIDIRECTIONAL = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
COMMANDS = "\x1b]0;title\x07\x1b[31m\x9b2J\x7f\r\b" + BIDIRECTIONAL + "\u2028\u2029\ud800\x00"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=[]) | st.sampled_from(COMMANDS + "\n\t")))
def test_nothing_but_controls_is_changed(text: str) -> None:
    """No control character, line separator, bidirectional control or surrogate is left; the others are all there."""
    shown = printable(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDIRECTIONAL for c in shown)
    kept = "".join(
        c for c in text if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in BIDIRECTIONAL
    )
    assert [c for c in shown if ord(c) > 0x7F] == [c for c in kept if ord(c) > 0x7F]
    assert printable(kept) == kept
    lines = printable(text, lines=True)
    assert lines.count("\n") == text.count("\n") and lines.replace("\n", "\\n").replace("\t", "\\t") == shown


def test_escapes() -> None:
    """The escapes are Python's; emoji with joiners, accents and other scripts are as they were."""
    assert printable("a\x1b[31mb\x07\n\t\r\x9f\u202e\ud800") == r"a\x1b[31mb\x07\n\t\r\x9f\u202e\ud800"
    assert printable("é 漢字 👨‍👩‍👧 ñ עברית [x] \\") == "é 漢字 👨‍👩‍👧 ñ עברית [x] \\"


@pytest.mark.parametrize("vector", [False, True])
def test_render_shows_them(vector: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts and completions with an escape sequence and a line feed, in every mode."""
    arguments = words(prompts=["a\x1b[31m b"], tokenizer=WordTokenizer(["a\x1b[31m", "b", "c\x07"]))
    if vector:
        envs = gym.make_vec("textenv/Text-v0", num_envs=2, render_mode="ansi", **arguments)
        envs.reset(seed=0)
        envs.step([3, 3])
        shown = "".join(envs.render())
    else:
        env = gym.make("textenv/Text-v0", render_mode="human", **arguments)
        env.reset(seed=0)
        env.step(3)
        shown = capsys.readouterr().out
    assert r"a\x1b[31m b" in shown and r"c\x07" in shown and not set(shown) & set("\x1b\x07")
