"""Pairs from which nothing can be learned: found before training, or by what a trained model makes of them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from experiments.errors import NotLearned
from experiments.reward_model.measuring import SIGNIFICANCE, SignTest
from experiments.reward_model.pairs import Pair, describe_pair
from textenv.data import printable
from textenv.rewards import RewardModel

FEWEST = math.ceil(-math.log2(SIGNIFICANCE))  # different held-out pairs; about fewer, a guess may well be right

BY_HEART = 0.75  # accuracy on the pairs that were trained on


def check_enough(path: Path, train: list[Pair], test: list[Pair]) -> None:
    """Checks that there are pairs to train on, and enough that are held out to tell a model from a guess.

    Raises:
        NotLearned: there are not.
    """
    different = len(set(test))
    if train and different >= FEWEST:
        return
    raise NotLearned(
        f"{path}: there are too few pairs: {len(train)} to train on and {different} different ones held out, and at "
        f"least 1 and {FEWEST} are needed: a guess is right about all of fewer with a probability of more than "
        f"{SIGNIFICANCE:g}. Bring more pairs, or change --held-out. (Pairs of one prompt, or equal ones, are on one "
        "side.)"
    )


def check_consistent(path: Path, pairs: list[Pair]) -> None:
    """Checks that not every preference is contradicted as often as it is stated; prints how many are contradicted.

    Raises:
        NotLearned: all are.
    """
    counts = Counter(pairs)
    reversed_counts = {pair: counts[pair._replace(chosen=pair.rejected, rejected=pair.chosen)] for pair in counts}
    contradicted = [pair for pair in counts if reversed_counts[pair]]
    if not contradicted:
        return
    text = (
        f"{path}: {sum(counts[pair] for pair in contradicted)} of {len(pairs)} pairs are contradicted: another pair of "
        f"the same prompt and completions prefers the other one. The first is {describe_pair(contradicted[0])}."
    )
    if all(counts[pair] == reversed_counts[pair] for pair in counts):
        raise NotLearned(f"{text} Each is, as often as it is stated: there is nothing to learn.")
    print(printable(text))


def check_differ(reward: RewardModel, pairs: list[Pair], which: str) -> None:
    """Checks that the model can tell the completions of pairs apart; prints how many are alike.

    Raises:
        NotLearned: the completions of all pairs have the same tokens.
    """
    alike = [p for p in pairs if reward.tokens(p.prompt, p.chosen) == reward.tokens(p.prompt, p.rejected)]
    if not alike:
        return
    cut = "" if reward.max_length is None else f", or only before the last {reward.max_length} tokens, which it reads"
    text = (
        f"{len(alike)} of {len(pairs)} {which} look alike to the model: both completions have the same tokens. Its "
        f"tokenizer may not know their words, or they differ only in white space that it drops{cut}. "
        f"The first is {describe_pair(alike[0])}."
    )
    if len(alike) == len(pairs):
        raise NotLearned(text)
    print(printable(text))


def check_learned(test: SignTest, train_accuracy: float) -> None:
    """Checks that a model is better than a guess on the held-out pairs.

    Args:
        test: of the held-out pairs.
        train_accuracy: the share of the training pairs that the model is right about.

    Raises:
        NotLearned: it is not, see `measuring`.
    """
    if test.p_value <= SIGNIFICANCE:
        return
    by_heart = (
        "It has learned those by heart: the preferences may have no rule, or the pairs are too few to show it"
        if train_accuracy > BY_HEART
        else "It has not learned those either: try more --epochs or another --learning-rate"
    )
    raise NotLearned(
        f"The reward model is no better than a guess: it is right about {test.right} of {test.num_pairs} different "
        f"held-out pairs, and a guess is right about as many with probability {test.p_value:.2g}, which must be at "
        f"most {SIGNIFICANCE:g}. Of the pairs that it was trained on it is right about {train_accuracy:.0%}. "
        f"{by_heart}. Nothing was saved as a result."
    )
