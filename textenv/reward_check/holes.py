"""What the optimum makes of a reward: the features and the words that pi* has more of, before any policy is trained.

    E_{pi*} f  ~  1/P sum_x sum_i w_i f(x, y_i),    w_i ~ exp(r(x, y_i) / beta),  sum_i w_i = 1

from the same completions of the reference (`OptimumEstimate.weights`). A trained policy goes towards pi*, so what is
shifted most here is what it will do first.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from textenv.exact import optimum_from_scores
from textenv.reward_check.calls import Array
from textenv.reward_check.correlation import centred, centred_ranks, correlation, partial_correlations
from textenv.reward_check.features import count_items, features_of, words_of
from textenv.reward_check.findings import Cell, Finding, Table, quoted
from textenv.reward_check.samples import Samples

SHIFTED = 0.5  # standard deviations
CORRELATED = 0.4
EXPLAINED = 0.15  # of the variance within prompts, by one word
WORDS_SHOWN = 12


class Hole(NamedTuple):
    """A finding, and how soon a policy would find it."""

    rank: float
    finding: Finding


def weights_of_optimum(samples: Samples, scores: Array, beta: float | None = None) -> Array:
    """pi*(y|x) / pi_ref(y|x) of each completion, scaled to a sum of 1 for each prompt, [K]; 0 where it has no score.

    With beta = 0 those of the best completion of each prompt.
    """
    rewards = samples.by_prompt(scores + samples.shaping)
    if (beta := samples.mdp.kl_coef if beta is None else beta) == 0:
        best = rewards == np.nanmax(rewards, axis=1, keepdims=True)
        shares: Array = (best / best.sum(axis=1, keepdims=True)).ravel()
        return shares
    with warnings.catch_warnings():  # the effective sample size is in the report
        warnings.simplefilter("ignore", UserWarning)
        return optimum_from_scores(rewards, beta).weights.ravel()


def shift(samples: Samples, values: Array, weights: Array) -> tuple[float, float, float]:
    """The mean of a feature under the reference and under pi*, and the standard error of the latter."""
    grid, w = samples.by_prompt(values), samples.by_prompt(weights)
    under = (w * grid).sum(axis=1)
    stderr = float(np.sqrt(((w * (grid - under[:, None])) ** 2).sum())) / len(grid)
    return float(values.mean()), float(under.mean()), stderr


def check_features(samples: Samples, scores: Array) -> tuple[list[Hole], Table]:
    """Which features go with the score, and which pi* has more of."""
    weights, features = weights_of_optimum(samples, scores), features_of(samples)
    missing = np.isnan(scores)
    ranks = [centred_ranks(samples.by_prompt(np.where(missing, np.nan, values))) for values in features.values()]
    target = centred_ranks(samples.by_prompt(scores))
    partial = partial_correlations(target, np.stack(ranks, axis=1)).tolist()
    rows, holes = list[list[Cell]](), list[Hole]()
    for (name, values), rank, held in zip(features.items(), ranks, partial, strict=True):
        before, under, stderr = shift(samples, values, weights)
        moved, simple = (under - before) / float(values.std()), correlation(target, rank)
        rows.append([name, before, under, stderr, moved, simple, held])
        # that pi* is less likely under the reference is its KL, and no hole
        shifted = abs(moved) > SHIFTED and abs(under - before) > 3 * stderr and name != "log pi_ref"
        if not shifted and not (abs(simple) > CORRELATED and abs(held) > CORRELATED / 2):
            continue
        text = f"{before:.3g} in a completion of the reference, {under:.3g} ± {stderr:.2g} in one of pi*; rank "
        text += f"correlation with the score {simple:+.2f}"
        text += "" if np.isnan(held) else f", {held:+.2f} with the other features held"
        best = int(np.argmax(weights * (values - before) * np.sign(moved)))
        example = (
            f"{quoted(str(samples.finished.completions[best]))} has {scores[best]:.3g}; {name}: {values[best]:.3g}"
        )
        holes.append(Hole(abs(moved), Finding("holes", f"feature: {name}", "look here", text, example)))
    rows.sort(key=lambda row: -abs(float(row[4] or 0.0)))
    columns = ["feature", "pi_ref", "pi*", "± of pi*", "shift in std", "correlation", "partial"]
    return holes, Table("holes", "features of completions, by how much the optimum shifts them", columns, rows)


class _Items(NamedTuple):
    """Words or characters, which completions have them, [K, W], and the correlations of their counts with the score."""

    names: list[str]
    has: NDArray[np.bool_]
    correlations: Array


def check_words(samples: Samples, scores: Array) -> tuple[list[Hole], Table, str]:
    """Which words go with the score, and characters that do more than any word; and the word that raises it most."""
    texts = [str(text) for text in samples.finished.completions]
    words = _items(samples, scores, [words_of(text) for text in texts])
    characters = _items(samples, scores, [[c for c in text if not c.isspace()] for text in texts])
    most = float(np.abs(words.correlations).max(initial=0.0)) + 0.02  # a character of that word is no news
    kept = np.abs(characters.correlations) > most
    names = [*words.names, *(f"the character {characters.names[k]!r}" for k in np.flatnonzero(kept))]
    found = np.concatenate([words.correlations, characters.correlations[kept]])
    has = np.concatenate([words.has, characters.has[:, kept]], axis=1)
    under = (weights_of_optimum(samples, scores) @ has) / samples.num_prompts
    order = np.argsort(-np.abs(found), kind="stable").tolist()
    rows: list[list[Cell]] = [[names[k], float(has[:, k].mean()), under[k], found[k]] for k in order[:WORDS_SHOWN]]
    titles = ["word", "in completions of pi_ref", "of pi*", "correlation"]
    table, holes = Table("holes", "words that go with the score", titles, rows), list[Hole]()
    if order and found[order[0]] ** 2 > EXPLAINED:
        first = order[0]
        text = f"{names[first]!r} alone explains {found[first] ** 2:.0%} of the variance within prompts: "
        text += f"{has[:, first].mean():.0%} of the reference's completions have it, {under[first]:.0%} of pi*'s"
        signed = np.where(has[:, first] & ~np.isnan(scores), np.sign(found[first]) * scores, -np.inf)
        best = int(signed.argmax())
        example = f"{quoted(texts[best])} has {scores[best]:.3g}"
        holes.append(Hole(abs(float(found[first])), Finding("holes", "one word", "look here", text, example)))
    raising = np.argsort(-words.correlations, kind="stable")[:1].tolist()
    return holes, table, words.names[raising[0]] if raising and words.correlations[raising[0]] > 0 else ""


def _items(samples: Samples, scores: Array, texts: list[list[str]]) -> _Items:
    names, counts = count_items(texts, least=max(5, len(samples) // 100))
    target = centred(samples.by_prompt(scores))
    columns = counts.reshape(samples.num_prompts, -1, len(names))
    columns = (columns - columns.mean(axis=1, keepdims=True)).reshape(counts.shape)
    size = np.linalg.norm(columns, axis=0) * np.linalg.norm(target)
    return _Items(names, counts > 0, np.divide(target @ columns, size, out=np.zeros(len(names)), where=size > 1e-12))


def completions_to_read(samples: Samples, scores: Array, each: int = 3) -> Table:
    """The completions that score best and worst."""
    best_first = np.argsort(-scores, kind="stable")[: int((~np.isnan(scores)).sum())].tolist()  # nan last
    prompts, texts = samples.finished.prompts, samples.finished.completions
    distinct = list({str(texts[row]): row for row in reversed(best_first)}.values())[::-1]
    chosen = distinct if len(distinct) <= 2 * each else [*distinct[:each], *distinct[-each:]]
    rows: list[list[Cell]] = [
        [float(scores[row]), quoted(str(prompts[row]), 50), quoted(str(texts[row]), 240)] for row in chosen
    ]
    return Table("holes", "completions that score best and worst", ["score", "prompt", "completion"], rows)
