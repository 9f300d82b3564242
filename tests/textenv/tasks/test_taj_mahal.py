"""TajMahal-v0: the scores of its page and the probabilities of its reference, computed by hand."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from textenv.testing import play


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("the taj mahal is in agra india", 1.5),  # city 1, country .3, sentence .2
        ("the taj mahal is in agra", 1.2),
        ("it is in agra india", 1.3),
        ("agra", 1.0),
        ("india", 0.2),
        ("the taj mahal is in uttar pradesh", 0.4),
        ("it is in paris", -1.0),
        ("the taj mahal is in france", -1.0),
        ("lucknow uttar pradesh india", -1.0),  # the state and the country are right, the city is not
    ],
)
def test_scores_are_those_of_the_page(completion: str, score: float) -> None:
    """The table of the task's page, row by row, given at the end token; before it, only the reference's half."""
    episode = play(gym.make("textenv/TajMahal-v0", kl_coef=0.0), "where is the taj mahal located", completion)
    assert episode.score == pytest.approx(score)
    assert episode.rewards[:-1].tolist() == [0.0] * (len(episode.rewards) - 1)
    assert episode.rewards[-1] == episode.score and episode.finish_reason == "stop"


def test_the_reference_has_the_probabilities_of_the_tables() -> None:
    """pi_ref("agra") and pi_ref("it is in paris france") are products of the task's tables, computed by hand."""
    env = gym.make("textenv/TajMahal-v0", kl_coef=0.1)
    # no opening .3 x own place .4 x "city" .4; no other form gives this completion
    agra = play(env, "where is the taj mahal", "agra")
    assert agra.ref_log_probs.sum() == pytest.approx(np.log(0.3 * 0.4 * 0.4))
    assert agra.rewards.sum() == pytest.approx(1.0 + 0.1 * np.log(0.3 * 0.4 * 0.4))
    # "it is in" .3 x the Eiffel tower's place .25 x "city country" .1 of the .7 that need no state
    paris = play(env, "where is the taj mahal", "it is in paris france")
    assert paris.ref_log_probs.sum() == pytest.approx(np.log(0.3 * 0.25 * 0.1 / 0.7))
