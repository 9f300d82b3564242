"""Completions with a part exchanged for that of another one: which parts does the score depend on?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from textenv.reward_check.calls import Array
from textenv.reward_check.features import sentences_of
from textenv.reward_check.findings import Cell, Finding, Table
from textenv.reward_check.holes import Hole
from textenv.reward_check.probes import CompletionsToEdit
from textenv.reward_check.samples import encode_completions
from textenv.rewards import FinishedCompletions, RewardError

QUARTERS = 4
EXCHANGES = 3  # of each completion, with others
UNREAD, READ = 0.05, 0.1  # of the change that the part with the largest one makes; of the standard deviation
CHANGED = 10  # completions, by that part: with fewer, that another part changes none of them may be chance

Pieces = list[str]  # the words of a completion, or its sentences
Exchange = Callable[[Pieces, Pieces], Pieces]


def _quarter(k: int) -> Exchange:
    """One quarter of the words is taken from another completion; as many, so that the length stays."""

    def exchanged(words: Pieces, other: Pieces) -> Pieces:
        first, last = k * len(words) // QUARTERS, (k + 1) * len(words) // QUARTERS
        there = k * len(other) // QUARTERS
        return [*words[:first], *(other[(there + i) % len(other)] for i in range(last - first)), *words[last:]]

    return exchanged


OF_WORDS = {
    f"the {name} quarter of the words": _quarter(k) for k, name in enumerate(("first", "second", "third", "last"))
}
OF_SENTENCES: dict[str, Exchange] = {
    "the first sentence": lambda own, other: [other[0], *own[1:]],
    "what follows the first sentence": lambda own, other: [own[0], *other[1:]],
    "what precedes the last sentence": lambda own, other: [*other[:-1], own[-1]],
    "the last sentence": lambda own, other: [*own[:-1], other[-1]],
}


def check_parts(base: CompletionsToEdit) -> tuple[list[Hole], list[Table]]:
    """Exchanges each quarter of the words, and all sentences but the first or the last, for those of another one."""
    texts = list(map(str, base.finished.completions))
    words, sentences = [text.split() for text in texts], [sentences_of(text) for text in texts]
    holes, tables = list[Hole](), list[Table]()
    for name, parts, pieces, least in (
        ("parts", OF_WORDS, words, QUARTERS),
        ("sentences", OF_SENTENCES, sentences, 2),
    ):
        rows = [row for row, each in enumerate(pieces) if len(each) >= least]
        if len(rows) < QUARTERS or not base.mdp.full_support:
            continue
        own = np.array(rows * EXCHANGES)
        others = np.concatenate([np.roll(rows, 1 + k * len(rows) // QUARTERS) for k in range(EXCHANGES)])
        edited = [
            [" ".join(part(pieces[a], pieces[b])) for a, b in zip(own, others, strict=True)] for part in parts.values()
        ]
        try:
            changes = _changes(base, base.finished.select(own), edited, base.scores[own])
        except RewardError:
            continue
        if changes is None:
            continue
        holes += _unread(name, dict(zip(parts, changes, strict=True)), own, base.scale)
        means = np.nanmean(changes, axis=1).tolist()
        cells: list[list[Cell]] = [
            [part, mean, mean / base.scale if base.scale else None]  # without a spread there is no unit
            for part, mean in zip(parts, means, strict=True)
        ]
        title = f"{name} exchanged for those of another completion"
        tables.append(Table("holes", title, ["exchanged", "change of the score", "std"], cells))
    return holes, tables


def _changes(
    base: CompletionsToEdit, finished: FinishedCompletions, texts: list[list[str]], before: Array
) -> Array | None:
    """By how much the score of each completion changes with each part, [parts, M]; nan where a text does not fit.

    None where the tokenizer lacks a word, or where nothing is left to compare.
    """
    found = np.full((len(texts), len(before)), np.nan)
    for part, edited in enumerate(texts):
        encoded = encode_completions(base.mdp, finished, edited)
        if encoded is None:
            return None
        whole = [a.split() == b.split() for a, b in zip(encoded.completions, edited, strict=True)]
        found[part] = np.where(whole, np.abs(base.reward.score(encoded) - before), np.nan)
    found[:, np.isnan(found).any(axis=0)] = np.nan  # parts are compared on the same completions
    return None if np.isnan(found).all() else found


def _unread(name: str, changes: dict[str, Array], own: NDArray[np.int64], scale: float) -> list[Hole]:
    """The finding about parts that the score does not depend on."""
    means = {part: float(np.nanmean(change)) for part, change in changes.items()}
    largest = max(means.values())
    most = max(len(np.unique(own[change > 0])) for change in changes.values())
    unread = [part for part, mean in means.items() if mean < UNREAD * largest]
    if not unread or most < CHANGED or largest < READ * (scale or largest):
        return []
    text = f"the score does not depend on {' and '.join(unread)}: there a policy may say anything"
    return [Hole(0.0, Finding("holes", name, "look here", text))]
