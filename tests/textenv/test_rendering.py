"""What a person sees of an episode: rewards with their terms, and the reference's choices, as the play command has."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from textenv.rendering import likeliest, reward_text


def test_render_has_the_terms_and_the_choices() -> None:
    """The numbers of `info` and of the reference, in each state of an episode; none for the tokens of a reset."""
    env: Any = gym.make("textenv/TajMahal-v0", render_mode="ansi")
    env.reset(options={"prompt": "where is the taj mahal", "completion": "it is"})
    mdp, infos = env.unwrapped.mdp, []
    for token in [*mdp.encode_completion("in agra").tolist(), 0]:
        lines = env.render().split("\n")
        log_probs = np.asarray(mdp.next_ref_log_probs(env.unwrapped.episodes.state)[0], dtype=np.float64)
        best = int(log_probs.argmax())
        name = mdp.tokenizer.convert_ids_to_tokens([best])[0]
        assert lines[-1].startswith(f"next: {name} {np.exp(log_probs[best]):.2%}")
        assert lines[-1].endswith(f"({(log_probs > -np.inf).sum()} of {mdp.vocab_size} tokens are allowed)")
        infos.append(env.step(token)[-1])
    lines = env.render().split("\n")[1:]
    assert [line.split()[0] for line in lines] == ["it", "is", "in", "agra", "<eos>"]
    assert [line.strip() for line in lines[:2]] == ["it", "is"]
    for line, info in zip(lines[2:], infos, strict=True):
        terms = {name: value for name, value in info["reward_terms"].items() if value != 0}
        assert re.findall(r"(\w+) ([+-][\d.]+)(?= |$)", line.partition(" = ")[2]) == [
            (name, f"{value:+.4f}") for name, value in terms.items()
        ]
    assert "score +1.0000" in lines[-1] and "score" not in lines[-2]  # control


def test_likeliest_tokens() -> None:
    """In their order, ties by id, at most as many as there are; masked ones never."""
    log_probs = np.log(
        np.array([0.1, 0.4, 0.0, 0.4, 0.1]), where=[True, True, False, True, True], out=np.full(5, -np.inf)
    )
    assert likeliest(log_probs, 3) == [1, 3, 0] and likeliest(log_probs, 99) == [1, 3, 0, 4]
    assert likeliest(log_probs, 0) == []


@pytest.mark.parametrize(("terms", "text"), [({}, "+0.5000"), ({"a": 0.5, "b": 0.0}, "+0.5000 = a +0.5000")])
def test_a_reward_has_its_terms(terms: dict[str, float], text: str) -> None:
    """Those that are not zero; a name from elsewhere cannot command a terminal."""
    assert reward_text(0.5, terms, colours=False) == text
    assert "\x1b" not in reward_text(0.5, {"\x1b[2J": 0.5}, colours=False)
    assert reward_text(0.5, terms, colours=True).startswith("\x1b[")  # control
