"""Rewards from a sentiment lexicon."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from textenv.rewards.messages import Completion, completion_text


def vader(
    prompts: Sequence[object], completions: Sequence[Completion], completion_ids: list[list[int]], **columns: object
) -> list[float]:
    """Sentiment of each completion in [-1, 1]: VADER's compound score (Hutto and Gilbert 2014), a lexicon with rules.

    Requires the package `vaderSentiment` (`pip install -e ".[vader]"`).
    """
    analyzer = _vader_analyzer()
    return [analyzer.polarity_scores(completion_text(completion))["compound"] for completion in completions]


vader.max_score = 1.0  # type: ignore[attr-defined]  # bounds the optimum, see textenv/exact/estimate.py


@cache  # reads the lexicon once
def _vader_analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError("The reward 'vader' needs vaderSentiment: pip install -e '.[vader]'") from error
    return SentimentIntensityAnalyzer()
