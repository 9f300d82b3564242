"""What explains a score: columns of known models are named, in order, and nothing is named in noise."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from tests.helpers.tasks import mdp
from textenv.data import WordTokenizer
from textenv.exact import optimum_from_scores
from textenv.reward_check import Finding
from textenv.reward_check.holes import ContentColumns, check_content, completions_to_read, explain
from textenv.reward_check.samples import Samples, draw_samples

WORDS = ["red", "green", "blue", "Red", ":)", "one", "7", "!"]


@pytest.fixture(scope="module")
def samples() -> Samples:
    """64 completions of up to 8 words of each of 4 prompts, from a uniform reference."""
    task = mdp(tokenizer=WordTokenizer(WORDS), prompts=["red", "green blue", "one", "red red"], max_new_tokens=8)
    return draw_samples(task, 64, 4, seed=0)


def scored(samples: Samples, score: Any) -> np.ndarray:
    """A score of each text."""
    return np.array([float(score(text)) for text in samples.finished.completions])


def holes(samples: Samples, scores: np.ndarray) -> list[Finding]:
    """The findings in their order; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, tables = check_content(ContentColumns.of(samples, scores))
    found = [hole for hole in found if hole.is_shown]
    assert all(np.isfinite(hole.rank) for hole in found) and all(
        len(row) == len(t.columns) for t in tables for row in t.rows
    )
    return [hole.finding for hole in sorted(found, key=lambda hole: -hole.rank)]


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (lambda text: text.split().count("blue"), "word: 'blue'"),
        (lambda text: -text.split().count("blue"), "word: 'blue'"),
        (lambda text: text.count("e"), "character: 'e'"),
        (lambda text: text.count(":)"), "feature: emoticons"),
        (lambda text: text.count("7"), "feature: digits"),
        (lambda text: text.count("green blue"), "pair of words: 'green blue'"),
        (lambda text: text.split()[:1] == ["one"], "beginning: 'one'"),
        (lambda text: text.split()[-1:] == ["one"], "ending: 'one'"),
        (lambda text: len(text), "feature: characters"),
        (lambda text: len(text.split()) ** 0.5, "feature: length in tokens"),
    ],
)
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e6])
def test_what_the_score_counts_is_named_first(samples: Samples, score: Any, name: str, scale: float) -> None:
    """Whatever the scale of the score; alone, where it is a count."""
    found = holes(samples, scale * scored(samples, score))
    assert found[0].name == name and found[0].verdict == "look here" and found[0].example
    if "length" not in name and "characters" not in name:
        assert "explains 100%" in found[0].text


def test_a_sum_of_two_counts_is_both_with_their_shares(samples: Samples) -> None:
    """With the variances 4 and 1: one after the other, and no third one."""
    scores = scored(samples, lambda text: 2 * text.split().count("blue") + text.split().count("green"))
    found = holes(samples, scores)
    assert [each.name for each in found[:2]] == ["word: 'blue'", "word: 'green'"]
    assert "100% with those before it" in found[1].text and len(found) == 2


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["normal", "binary", "rare", "heavy tails"])
def test_nothing_is_found_in_noise(samples: Samples, kind: str, seed: int) -> None:
    """Of any distribution."""
    rng = np.random.default_rng(seed)
    draws = {
        "normal": rng.normal(size=256),
        "binary": rng.random(256) < 0.5,
        "rare": rng.random(256) < 0.03,
        "heavy tails": rng.standard_cauchy(256),
    }
    assert holes(samples, np.asarray(draws[kind], dtype=np.float64)) == []


def test_what_differs_between_prompts_is_no_hole(samples: Samples) -> None:
    """A score of the prompt beside noise. Control: the same size within prompts."""
    rng = np.random.default_rng(0)
    assert holes(samples, 10.0 * samples.finished.prompt + rng.normal(size=256)) == []
    assert holes(samples, scored(samples, lambda text: text.count("7")) + 0.1 * rng.normal(size=256))  # control


def test_a_column_that_shares_the_cause_is_not_named(samples: Samples) -> None:
    """Capitals are 'Red' only; ends and lengths go with it. Control: `explain` without the cause names another."""
    scores = scored(samples, lambda text: text.split().count("Red"))
    found = holes(samples, scores)
    assert [each.name for each in found] == ["feature: upper-case letters"]
    content = ContentColumns.of(samples, scores)
    columns = content.columns.copy()
    columns[:, np.abs(content.correlations) > 0.99] = 0.0
    assert [term.explained < 0.9 for term in explain(content.centred(scores), columns, 256)][:1] == [True]  # control


def test_completions_without_a_score_are_left_out(samples: Samples) -> None:
    """The same is named of a third of them."""
    scores = scored(samples, lambda text: text.count("7"))
    scores[np.random.default_rng(0).random(256) < 0.6] = np.nan
    found = holes(samples, scores)
    assert found[0].name == "feature: digits" and "nan" not in found[0].text + found[0].example


def test_explained_shares_are_those_of_regressions() -> None:
    """Of orthogonal columns: their squared correlations; at most three, simple columns first."""
    rng = np.random.default_rng(0)
    columns = np.linalg.qr(rng.normal(size=(400, 6)))[0]
    target = columns @ np.array([3.0, 0.0, 2.0, 1.5, 1.4, 0.0])
    terms = explain(target, columns, 400)
    assert [term.column for term in terms] == [0, 2, 3]
    total = 9 + 4 + 1.5**2 + 1.4**2
    assert [term.explained for term in terms] == pytest.approx([9 / total, 4 / total, 1.5**2 / total])
    double = np.concatenate([columns[:, 3:4], columns[:, :1], 1.001 * columns[:, :1]], axis=1)
    assert [term.column for term in explain(3 * columns[:, 0], double, 400)] == [1]
    assert explain(rng.normal(size=400), np.zeros((400, 3)), 400) == []
    assert explain(rng.normal(size=400), np.zeros((400, 0)), 400) == []


def test_the_strongest_item_raises_the_score(samples: Samples) -> None:
    """One that lowers it is none; it may be a pair of words or a character."""
    raised = ContentColumns.of(samples, scored(samples, lambda text: text.split().count("one")))
    assert str(raised.strongest) == "word 'one'"
    content = ContentColumns.of(samples, -scored(samples, lambda text: text.count("e")))
    assert content.strongest is not None and content.strongest.text not in ("e", "red", "green", "blue")
    assert ContentColumns.of(samples, np.zeros(256)).strongest is None


def test_completions_to_read_are_the_best_and_the_worst(samples: Samples) -> None:
    """Each text once; none without a score."""
    scores = scored(samples, len)
    scores[:10] = np.nan
    table = completions_to_read(samples, scores)
    values = [row[0] for row in table.rows]
    assert values == sorted(values, reverse=True) and len(values) == 6
    assert values[0] == np.nanmax(scores) and values[-1] == np.nanmin(scores)
    prompt = samples.finished.prompt  # the same texts have other scores after other prompts
    other = [row[0] for row in completions_to_read(samples, scored(samples, len) - 100.0 * prompt).rows]
    assert other == sorted(other, reverse=True) and other[-1] < -250  # type: ignore[operator, type-var]
    few = completions_to_read(samples, np.where(np.arange(256) < 2, 1.0, np.nan))
    assert 1 <= len(few.rows) <= 2


def test_a_feature_is_worth_what_the_optimum_gains_by_it(samples: Samples) -> None:
    """Of a score that is a count: J* - J of the reference, the currency of the edits. Control: a part of it is less."""
    scores = scored(samples, lambda text: text.count("7"))
    with pytest.warns(UserWarning, match="effective samples"):
        estimate = optimum_from_scores(samples.by_prompt(scores), samples.mdp.kl_coef)
    holes, _ = check_content(ContentColumns.of(samples, scores))
    rank = max(hole.rank for hole in holes)
    assert rank == pytest.approx(estimate.objective - estimate.reference_objective)
    noisy, _ = check_content(ContentColumns.of(samples, scores + np.random.default_rng(0).normal(size=256)))
    assert 0 < max(hole.rank for hole in noisy) < 1.2 * rank  # control
