"""Pairs from which nothing can be learned: found before training, or by what a trained model makes of them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from experiments.errors import NotLearned
from experiments.reward_model.pairs import Pair, describe_pair, group_of, have_one_prompt
from experiments.reward_model.significance import SIGNIFICANCE, SignTest
from textenv.data import printable
from textenv.rewards import RewardModel

FEWEST = math.ceil(-math.log2(SIGNIFICANCE))  # held-out groups; about all of fewer, a guess may well be right

BY_HEART = 0.75  # accuracy on the pairs that were trained on


def check_enough(path: Path, train: list[Pair], test: list[Pair]) -> None:
    """Checks that there are pairs to train on, and enough groups of held-out pairs to tell a model from a guess.

    Raises:
        NotLearned: there are not.
    """
    one_prompt = have_one_prompt(train + test)
    groups = len({group_of(pair, one_prompt=one_prompt) for pair in test})
    if train and groups >= FEWEST:
        return
    kind = "different pairs" if one_prompt else "prompts"
    raise NotLearned(
        f"{path}: there are too few {kind}: {len(train)} pairs to train on and {groups} {kind} held out, and at least "
        f"1 and {FEWEST} are needed: a guess is right about all of fewer with a probability of more than "
        f"{SIGNIFICANCE:g}. Bring more {kind}, or change --held-out. (Pairs of one prompt, or equal ones, are on one "
        "side, and count as one guess.)"
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


def describe_guess(p_value: float | None) -> str:
    """A sentence about a set of pairs on which the model is no better than a guess; "" where it is."""
    if p_value is None or p_value <= SIGNIFICANCE:
        return ""
    return f"It is no better than a guess here, which is right about as many with probability {p_value:.2g}. "


def check_learned(test: SignTest, train_accuracy: float) -> None:
    """Checks that a model is better than a guess on the held-out pairs.

    Args:
        test: of the held-out pairs.
        train_accuracy: the share of the training pairs that the model is right about.

    Raises:
        NotLearned: it is not, see `significance`.
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
        f"held-out pairs in {test.num_groups} groups, and a guess about each group as a whole is right about as many "
        f"with probability {test.p_value:.2g}, which must be at most {SIGNIFICANCE:g}. (A group is the pairs of one "
        "prompt; where all have the same, those of the same two completions.) Of the pairs that it was trained on it "
        f"is right about {train_accuracy:.0%}. {by_heart}. Nothing was saved as a result."
    )
