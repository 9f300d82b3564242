"""Faults of environments that a fuzz must find."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from textenv import InvalidAction, TextMDP
from textenv.stepping.batch import EpisodeBatch
from textenv.stepping.prompt_streams import PromptStreams


def a_wrong_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """The score of a completion depends on its length in another way."""
    score = TextMDP.score

    def wrong(mdp: TextMDP, finished: Any) -> Any:
        return score(mdp, finished) + (len(finished.completions[0]) > 2)

    monkeypatch.setattr(TextMDP, "score", wrong)
    monkeypatch.setattr(TextMDP, "is_pure", False)


def a_refused_reset_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams are not restored after a refused reset."""
    monkeypatch.setattr(PromptStreams, "restore_on_error", lambda streams, env: nullcontext())


def a_refused_action_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A masked token ends the episode."""
    step = EpisodeBatch.step

    def wrong(episodes: EpisodeBatch, actions: Any, illegal_reward: float | None = None) -> Any:
        try:
            return step(episodes, actions, illegal_reward)
        except InvalidAction:
            episodes.live = np.zeros_like(episodes.live)
            raise

    monkeypatch.setattr(EpisodeBatch, "step", wrong)


def a_kl_that_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The KL of a completion includes that of the one before."""
    start = EpisodeBatch.start

    def wrong(episodes: EpisodeBatch, rows: Any, options: Any = None) -> None:
        before = episodes.kl.copy()
        start(episodes, rows, options)
        episodes.kl = before

    monkeypatch.setattr(EpisodeBatch, "start", wrong)


PLANTED = [a_wrong_score, a_refused_reset_that_draws, a_refused_action_that_ends, a_kl_that_goes_on]
