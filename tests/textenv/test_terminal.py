"""Colours where a terminal has them, and nowhere else."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout

import gymnasium as gym
import pytest

from textenv.terminal import BLUE, ORANGE, has_colours, signed

ESCAPES = re.compile(r"\x1b\[[\d;]+m")


class Terminal(io.StringIO):
    """A text stream that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal, where nothing is said about colours."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def rendered(mode: str) -> str | None:
    """Steps through "paris" and the end token, which score -1; returns what render() returns."""
    env = gym.make("textenv/TajMahal-v0", render_mode=mode)
    env.reset(options={"prompt": "where is the taj mahal"})
    for token in [*env.unwrapped.mdp.encode_completion("paris").tolist(), 0]:  # type: ignore[attr-defined]
        env.step(token)
    return env.render()  # type: ignore[return-value]


def test_human_is_coloured_on_a_terminal(terminal: Terminal) -> None:
    """Rewards have the colour of their sign; without the escapes it is what ansi has."""
    with redirect_stdout(terminal):
        rendered("human")
    text = terminal.getvalue()
    assert re.search(rf"<eos> +{re.escape(ORANGE)}-\d", text)
    plain = rendered("ansi")
    assert plain is not None and "\x1b" not in plain
    lines = ESCAPES.sub("", text).splitlines()
    assert [line for line in lines if not line.startswith("next: ")] == plain.splitlines()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_the_user_may_have_none(name: str, value: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR, whatever its value, and terminals without colours; an empty NO_COLOR counts as none."""
    monkeypatch.setenv(name, value)
    with redirect_stdout(terminal):
        rendered("human")
    assert terminal.getvalue() and "\x1b" not in terminal.getvalue() and not has_colours(terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    assert has_colours(terminal) and not has_colours(None)


def test_a_file_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not a terminal gets plain text."""
    rendered("human")
    assert "\x1b" not in capsys.readouterr().out


def test_signs() -> None:
    """Positive, negative, zero, and no number."""
    assert signed("x", 1.0, True).startswith(BLUE) and signed("x", -1.0, True).startswith(ORANGE)
    assert signed("x", float("nan"), True) == signed("x", 1.0, False) == "x"
    assert ESCAPES.sub("", signed("x", 0.0, True)) == "x" != signed("x", 0.0, True)
