"""Which features and items of a completion the score correlates with, and which of them the optimum has more of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from textenv.reward_check.calls import Array
from textenv.reward_check.correlation import centred, centred_ranks, correlation, partial_correlations
from textenv.reward_check.features import ALL_FEATURES, features_of
from textenv.reward_check.findings import Cell, Finding, Table, quoted
from textenv.reward_check.items import Item, count_items
from textenv.reward_check.optimum import estimable_beta, largest_gain, shift, weights_of_optimum
from textenv.reward_check.samples import Samples

SHIFTED = 0.5  # standard deviations
HELD = 0.1  # partial correlation: less is what a feature has in common with those that explain the score
EXPLAINED = 0.1  # of the variance within prompts
CHANCE = 4.0  # the best of C columns without a meaning explains about 2 log(C) / K of the variance of K texts
SIMPLER = 0.02  # a correlation that is larger by less is no reason to name something less simple
TERMS = 3  # that explain the score together
ITEMS_SHOWN = 12


class Hole(NamedTuple):
    """A finding, and what E score - beta KL gains if a policy does this alone; -inf where it shows nothing.

    Of a feature it is `largest_gain` of the part of the score that correlates with it, of an edit the mean change of
    score + beta log pi_ref: both are in units of the score, at the task's beta.
    """

    rank: float
    finding: Finding

    @property
    def is_shown(self) -> bool:
        """Whether it is printed: it shows something."""
        return self.rank > -np.inf and self.finding.verdict != "holds"


class ExplainingColumn(NamedTuple):
    """One of the columns that explain the score together."""

    column: int
    explained: float
    """Share of the variance within prompts, beyond that of the terms before it."""


@dataclass(frozen=True)
class ContentColumns:
    """What the completions have beside their scores: F features and W items, C = F + W columns.

    Attributes:
        samples: the completions.
        scores: [K], nan where there is none.
        features: [K] each, by name.
        items: words, pairs of words, characters, beginnings and endings.
        counts: how often each completion has each item, [K, W].
    """

    samples: Samples
    scores: Array
    features: dict[str, Array]
    items: list[Item]
    counts: Array

    @classmethod
    def of(cls, samples: Samples, scores: Array) -> ContentColumns:
        """Counts."""
        items, counts = count_items(list(map(str, samples.finished.completions)))
        return cls(samples, scores, features_of(samples), items, counts)

    def centred(self, values: Array) -> Array:
        """Values minus their mean over the completions of the prompt that have a score, [K]; 0 for the others."""
        return centred(self.samples.by_prompt(np.where(np.isnan(self.scores), np.nan, values)))

    @cached_property
    def columns(self) -> Array:
        """All columns, the features first, centred: [K, C]."""
        columns = [*self.features.values(), *self.counts.T]
        return np.stack([self.centred(column) for column in columns], axis=1) if columns else np.zeros((len(self), 0))

    @cached_property
    def correlations(self) -> Array:
        """Of each column with the score, [C]; 0 for a constant one."""
        return _correlations(self.centred(self.scores), self.columns)

    @cached_property
    def beta(self) -> float:
        """Of the optimum that is estimated."""
        return estimable_beta(self.samples, self.scores)

    @cached_property
    def weights(self) -> Array:
        """Of the completions under that optimum, [K]."""
        return weights_of_optimum(self.samples, self.scores, self.beta)

    def shift(self, values: Array) -> tuple[float, float, float]:
        """`optimum.shift` of values [K], over the completions that have a score."""
        return shift(self.samples, np.where(np.isnan(self.scores), np.nan, values), self.weights)

    def gain(self, column: int, correlation: float) -> float:
        """What a policy gains by the part of the score that correlates with a column: see `largest_gain`."""
        target, values = self.centred(self.scores), self.columns[:, column]
        slope = correlation * float(target.std()) / max(float(values.std()), 1e-300)
        return largest_gain(self.samples, np.where(np.isnan(self.scores), np.nan, slope * values))

    @property
    def distinct(self) -> int:
        """How many completions are different, or of different prompts: toys have few, each many times."""
        finished = self.samples.finished
        return len(set(zip(finished.prompt.tolist(), map(str, finished.completions), strict=True)))

    def __len__(self) -> int:
        return len(self.scores)

    def name(self, column: int) -> str:
        """The name of a column's finding."""
        names = list(self.features)
        if column < len(names):
            return f"feature: {names[column]}"
        item = self.items[column - len(names)]
        return f"{item.kind}: {item.text!r}"

    def values(self, column: int) -> Array:
        """A column as it was counted, [K]."""
        count = len(self.features)
        return list(self.features.values())[column] if column < count else self.counts[:, column - count]

    @property
    def strongest(self) -> Item | None:
        """The item that raises the score most; None if none does."""
        raising = self.correlations[len(self.features) :]
        return self.items[_first_largest(raising)] if raising.max(initial=0.0) > 0 else None


def explain(target: Array, columns: Array, distinct: int) -> list[ExplainingColumn]:
    """The few columns that explain a target best, one after the other: orthogonal matching pursuit.

    Args:
        target: [K], centred.
        columns: [K, C], centred, simpler ones first.
        distinct: the different rows among the K.
    """
    residual, left, terms = target, 1.0, list[ExplainingColumn]()
    least = max(EXPLAINED, CHANCE * np.log(max(columns.shape[1], 2)) / distinct)
    while len(terms) < TERMS and left > least:
        found = np.abs(_correlations(residual, columns))
        if not found.max(initial=0.0):
            break
        best = _first_largest(found)
        others = np.arange(len(target)) != np.argmax(np.abs(residual))  # one outlier is no pattern
        if left * _correlations(residual[others], columns[others, best : best + 1])[0] ** 2 < least:
            break
        chosen = [*(term.column for term in terms), best]
        fitted = columns[:, chosen] @ np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
        now = float(((target - fitted) ** 2).sum() / (target**2).sum())
        if left - now < least:
            break
        terms.append(ExplainingColumn(chosen[-1], left - now))
        residual, left = target - fitted, now
    return terms


def check_content(content: ContentColumns) -> tuple[list[Hole], list[Table]]:
    """What explains the score, and what else the optimum has more of."""
    target = content.centred(content.scores)
    terms = explain(target / np.abs(target).max(), content.columns, content.distinct)
    holes, explained = list[Hole](), 0.0
    for term in terms:
        explained += term.explained
        text = f"explains {term.explained:.0%} of the variance within prompts"
        text += "" if term is terms[0] else f", {explained:.0%} with those before it"
        holes.append(_hole(content, term.column, text, float(content.correlations[term.column])))
    shifted, table = _shifted_features(content, [term.column for term in terms])
    # where less is left than would be named, what else is shifted is so by the terms
    holes += shifted if explained < 1 - EXPLAINED else []
    return holes + _without_a_finding(holes), [table, _items_table(content)]


def _without_a_finding(holes: list[Hole]) -> list[Hole]:
    """The features that show nothing: they hold."""
    found = {hole.finding.name for hole in holes}
    names = [name for each in ALL_FEATURES if (name := f"feature: {each}") not in found]
    text = "it explains little of the score, and the optimum has as much of it, or what it has in common with others"
    return [Hole(-np.inf, Finding("holes", name, "holds", text)) for name in names]


def _shifted_features(content: ContentColumns, chosen: list[int]) -> tuple[list[Hole], Table]:
    """The features that the optimum shifts, beyond what they have in common with the columns that explain the score."""
    samples, count = content.samples, len(content.features)
    target = centred_ranks(samples.by_prompt(content.scores))
    missing = np.isnan(content.scores)
    ranks = [centred_ranks(samples.by_prompt(np.where(missing, np.nan, v))) for v in content.features.values()]
    items = [centred_ranks(samples.by_prompt(content.values(column))) for column in chosen if column >= count]
    partial = partial_correlations(target, np.stack([*ranks, *items], axis=1)).tolist() if ranks else []
    rows, holes = list[list[Cell]](), list[Hole]()
    for column, (name, values) in enumerate(content.features.items()):
        before, under, stderr = content.shift(values)
        moved, held = (under - before) / float(values.std()), partial[column]
        rows.append([name, before, under, stderr, moved, correlation(target, ranks[column]), held])
        # that pi* is less likely under the reference is its KL, and no hole
        if column in chosen or name == "log pi_ref" or abs(held) < HELD or np.isnan(held):
            continue
        if abs(moved) > SHIFTED and abs(under - before) > 3 * stderr:
            text = f"rank correlation {held:+.2f} with the score where the other features are held"
            holes.append(_hole(content, column, text, held))
    rows.sort(key=lambda row: -abs(float(row[4] or 0.0)))
    columns = ["feature", "pi_ref", "pi*", "± of pi*", "shift in std", "correlation", "partial"]
    title = f"features of completions, by how much the optimum at beta {content.beta:.3g} shifts them"
    return holes, Table("holes", title, columns, rows)


def _hole(content: ContentColumns, column: int, text: str, correlation: float) -> Hole:
    """The finding about a column, its correlation with the score, and the completion that is the clearest example."""
    values = content.values(column)
    before, under, stderr = content.shift(values)
    text += f": {before:.3g} of it in a completion of the reference, {under:.3g} ± {stderr:.2g} in one of the optimum "
    text += f"at beta {content.beta:.3g}"
    best = int(np.argmax(content.weights * (values - before) * (1 if under > before else -1)))
    example = f"{quoted(str(content.samples.finished.completions[best]))} has {content.scores[best]:.3g}; "
    name = content.name(column)
    example += f"{name.removeprefix('feature: ')}: {values[best]:.3g}"
    return Hole(content.gain(column, correlation), Finding("holes", name, "look here", text, example))


def _items_table(content: ContentColumns) -> Table:
    """The items that correlate most with the score."""
    found, has = content.correlations[len(content.features) :], content.counts > 0
    under = (content.weights @ has) / content.samples.num_prompts
    order = np.argsort(-np.abs(found), kind="stable")[:ITEMS_SHOWN].tolist()
    rows: list[list[Cell]] = [[str(content.items[k]), float(has[:, k].mean()), under[k], found[k]] for k in order]
    titles = ["item", "in completions of pi_ref", "of pi*", "correlation"]
    title = f"words and characters that correlate with the score; pi* at beta {content.beta:.3g}"
    return Table("holes", title, titles, rows)


def completions_to_read(samples: Samples, scores: Array, each: int = 3) -> Table:
    """The completions that score best and worst."""
    best_first = np.argsort(-scores, kind="stable")[: int((~np.isnan(scores)).sum())].tolist()  # nan last
    prompts, texts = samples.finished.prompts, samples.finished.completions
    found = dict[tuple[str, str], int]()
    for row in best_first:
        found.setdefault((str(prompts[row]), str(texts[row])), row)
    distinct = list(found.values())
    chosen = distinct if len(distinct) <= 2 * each else [*distinct[:each], *distinct[-each:]]
    rows: list[list[Cell]] = [
        [float(scores[row]), quoted(str(prompts[row]), 50), quoted(str(texts[row]), 240)] for row in chosen
    ]
    return Table("holes", "completions that score best and worst", ["score", "prompt", "completion"], rows)


def _correlations(target: Array, columns: Array) -> Array:
    """Of centred columns [K, C] with a centred target [K]: [C], 0 for a constant column."""
    target = target / max(float(np.abs(target).max(initial=0.0)), 1e-300)  # no underflow
    size = np.linalg.norm(columns, axis=0) * np.linalg.norm(target)
    found: Array = np.divide(target @ columns, size, out=np.zeros(columns.shape[1]), where=size > 0)
    return found


def _first_largest(values: Array) -> int:
    """The index of the largest value, or the first that is nearly as large: the simplest."""
    return int(np.flatnonzero(values >= values.max() - SIMPLER)[0])
