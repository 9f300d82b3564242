"""Unit tests of a reward in three lines: play a completion, and assert what its tokens got.

>>> import gymnasium as gym, textenv
>>> from textenv.testing import assert_prefers, play
>>> env = gym.make("textenv/TajMahal-v0")
>>> episode = play(env, "where is the taj mahal", "it is in agra")
>>> episode.score, episode.finish_reason, len(episode.rewards)
(1.0, 'stop', 5)
>>> assert_prefers(env, [("where is the taj mahal", "it is in agra", "paris")])
"""

from textenv.assertions import (
    assert_bounded,
    assert_invariant,
    assert_potential_based,
    assert_prefers,
    assert_rewards,
)
from textenv.episode import Episode, play
from textenv.reward_check import Finding, RewardReport, check_reward
from textenv.single_score import score_of

__all__ = [
    "Episode",
    "Finding",
    "RewardReport",
    "assert_bounded",
    "assert_invariant",
    "assert_potential_based",
    "assert_prefers",
    "assert_rewards",
    "check_reward",
    "play",
    "score_of",
]
