"""What completions consist of: words, pairs of words, characters, and what they begin and end with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.features import words_of
from textenv.reward_check.findings import quoted

MOST = 3000  # items, the most frequent: more are rare ones
CELLS = 10_000_000  # of the counts, 80 MB
RARE = 0.01  # of the completions have an item that is counted, and 5 at least


@dataclass(frozen=True, order=True)
class Item:
    """Something that a completion has.

    Attributes:
        kind: "word", "pair of words", "character", "beginning" or "ending".
        text: its spelling.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind} {quoted(self.text)}"

    def added_to(self, completion: str, times: int = 1) -> str:
        """The completion with the item added, at its start or at its end."""
        parts = [self.text] * times
        return " ".join([*parts, completion] if self.kind == "beginning" else [completion, *parts])


def items_of(text: str) -> Counter[Item]:
    """The items of a completion, and how often it has each."""
    words, plain = words_of(text), text.split()
    found = Counter(Item("word", word) for word in words)
    found.update(Item("pair of words", " ".join(pair)) for pair in pairwise(words))
    found.update(Item("character", character) for character in text if character != " ")
    if plain:
        found.update([Item("beginning", plain[0]), Item("ending", plain[-1]), Item("ending", text.rstrip()[-1])])
    return found


def count_items(texts: list[str]) -> tuple[list[Item], Array]:
    """The items that enough completions have, W, and how often each completion has them, [K, W]."""
    counted = [items_of(text) for text in texts]
    frequency = Counter(chain.from_iterable(counted))
    least = max(5, int(RARE * len(texts)))
    frequent = frequency.most_common(min(MOST, CELLS // max(1, len(texts))))
    column = {item: k for k, (item, count) in enumerate(frequent) if count >= least}
    matrix = np.zeros((len(texts), len(column)))
    for row, counts in enumerate(counted):
        for item in counts.keys() & column.keys():
            matrix[row, column[item]] = counts[item]
    return list(column), matrix
