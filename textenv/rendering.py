"""What a person sees of an episode, in `render()` and in the command play: rewards with their terms, and choices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from textenv.data import printable
from textenv.terminal import signed


def reward_text(reward: float, terms: Mapping[str, float], colours: bool) -> str:
    """A reward, in the colour of its sign if there are colours, and its terms that are not zero."""
    shown = " ".join(f"{name} {value:+.4f}" for name, value in terms.items() if value != 0)
    return signed(f"{reward:+.4f}", reward, colours) + (f" = {printable(shown)}" if shown else "")


def likeliest(log_probs: NDArray[np.float64], top: int) -> list[int]:
    """The tokens of the largest log-probabilities [V], at most `top`, the likeliest first; none that is masked."""
    order = np.argsort(-log_probs, kind="stable")[:top]
    return [int(token) for token in order if log_probs[token] > -np.inf]
