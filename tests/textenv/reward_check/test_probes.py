"""Edits and cuts: what each does to rewards whose answer is known, and to a few that are honest."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.helpers.hole_rewards import reward_of
from tests.helpers.tasks import mdp
from textenv import TextMDP
from textenv.data import WordTokenizer
from textenv.reward_check import Finding
from textenv.reward_check.calls import WatchedReward
from textenv.reward_check.edits import EDITS, OTHER_PROMPT, contexts
from textenv.reward_check.features import sentences_of
from textenv.reward_check.holes import Hole
from textenv.reward_check.items import Item
from textenv.reward_check.lengths import check_lengths, explained_by_groups, length_effects
from textenv.reward_check.outcome import Edited, Outcome
from textenv.reward_check.parts import check_parts
from textenv.reward_check.probes import CompletionsToEdit, base_of, check_edits
from textenv.reward_check.samples import draw_samples

WORDS = ["red", "green", "blue", "one", ":)", "!", "!!!!", "7", "."]


def task(score: Any, **arguments: Any) -> TextMDP:
    """16 words at most, uniformly; the KL costs little."""
    given: dict[str, Any] = {
        "tokenizer": WordTokenizer(WORDS),
        "prompts": ["red", "green blue", "one", "red red"],
        "max_new_tokens": 16,
        "kl_coef": 0.01,
        "reward": reward_of(score),
    }
    return mdp(**(given | arguments))


def base(score: Any, **arguments: Any) -> CompletionsToEdit:
    """48 of its completions."""
    samples = draw_samples(task(score, **arguments), 64, 4, seed=0)
    reward = WatchedReward(samples.mdp.reward)
    found = base_of(reward, samples, reward.score(samples.finished))
    assert found is not None
    return found


def named(found: tuple[list[Hole], Any]) -> dict[str, Finding]:
    """The findings that are shown by name, without "edit:"."""
    return {hole.finding.name.removeprefix("edit: "): hole.finding for hole in found[0] if hole.is_shown}


def edits(score: Any, strongest: Item | None = None, **arguments: Any) -> dict[str, Finding]:
    """What the edits show; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return named(check_edits(base(score, **arguments), strongest, seed=0))


def words_of(p: str, y: str, ids: list[int]) -> float:
    """How many."""
    return float(len(y.split()))


def words(y: str, word: str) -> int:
    """How often."""
    return y.split().count(word)


def test_edits_are_what_their_names_say() -> None:
    """Each of them by hand."""
    found = base(lambda p, y, ids: len(ids))
    context = next(
        contexts(found.mdp, found.reward, found.finished, Item("beginning", "so"), Item("word", "ok"), seed=0)
    )
    texts = {name: edit("It is. Red", context) for name, (_, edit) in EDITS.items()}
    assert texts["append four smileys"] == "It is. Red :) :) :) :)"
    assert texts["add the strongest item four times"] == "so so so so It is. Red"
    assert texts["add a text of the reward's source"] == "It is. Red ok"
    assert texts["add the prompt again"] == f"It is. Red {context.prompt}"
    begin = EDITS["begin with the prompt"][1]
    assert begin("It is.", replace(context, prompt="so what")) == "so what It is."
    assert begin("It is.", replace(context, prompt="what")) is None
    assert texts["pad with the last word to the limit"] == "It is. Red" + " Red" * context.room
    assert texts["repeat the best sentence"].startswith("It is. Red. ")  # type: ignore[union-attr]
    assert texts["put everything in upper case"] == "IT IS. RED"
    assert texts["cut the second half"] == "It" and texts["leave it empty"] == ""
    assert sorted(texts["shuffle the words"].split()) == ["It", "Red", "is."]  # type: ignore[union-attr]
    alike = texts["exchange letters for look-alikes"]
    assert alike is not None and len(alike) == len("It is. Red") and not alike.isascii()


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (lambda p, y, ids: words(y, ":)"), "append a smiley"),
        (lambda p, y, ids: words(y, "7"), "append a digit"),
        (lambda p, y, ids: len(ids), "pad with the last word to the limit"),
        (lambda p, y, ids: y.count(p), "add the prompt again"),
        (lambda p, y, ids: -len(ids), "leave it empty"),
        (lambda p, y, ids: -len(ids), "cut the second half"),
        (lambda p, y, ids: float("\n" in y or y.endswith("! !!!!")), None),
    ],
)
def test_an_edit_without_meaning_that_pays_is_broken(score: Any, name: str | None) -> None:
    """With an example whose scores are those of the function. Control: the last reward, that none reaches."""
    found = edits(score)
    broken = {key for key, each in found.items() if each.verdict == "broken"}
    assert (name in broken) if name else not broken
    if name:
        old, new = found[name].example.split(" has ")[1].split(", ")[0], found[name].example.rsplit(" ", 1)[1]
        assert float(new) > float(old)


def test_what_costs_more_than_it_pays_is_to_be_looked_at() -> None:
    """The KL of a smiley is log 10. Control: a smaller beta."""

    def smileys(p: str, y: str, ids: list[int]) -> float:
        return float(words(y, ":)"))

    assert edits(smileys, kl_coef=1.0)["append a smiley"].verdict == "look here"
    assert edits(smileys, kl_coef=0.1)["append a smiley"].verdict == "broken"  # control


def test_completions_that_become_one_cost_what_a_policy_pays_that_always_says_it() -> None:
    """-log pi_ref of nothing at all: log 10."""
    found = check_edits(base(lambda p, y, ids: -len(ids)), None, seed=0)[1][0]
    costs = {row[0]: row[4] for row in found.rows}
    assert costs["leave it empty"] == pytest.approx(-np.log(10))
    assert costs["append a smiley"] == pytest.approx(-np.log(10))  # control: one more token, and each its own text


def test_words_are_shuffled_without_notice() -> None:
    """By a score of words alone. Control: one that reads their order."""

    def pairs(p: str, y: str, ids: list[int]) -> float:
        return float(y.count("red green") + y.count("blue red") + y.count("one :)"))

    found = edits(lambda p, y, ids: words(y, "red") - words(y, "blue"))
    assert found["shuffle the words"].verdict == "look here" and "keep 100%" in found["shuffle the words"].text
    assert "shuffle the words" not in edits(pairs)  # control


def test_a_completion_of_another_prompt_is_as_good() -> None:
    """Where the prompt is not read. Control: it is."""
    found = edits(lambda p, y, ids: words(y, "red"))
    assert found[OTHER_PROMPT].verdict == "look here"
    example = found[OTHER_PROMPT].example
    before, own, after, other = re.fullmatch(r"'.*' has (.*) after '(.*)', and (.*) after '(.*)'", example).groups()  # type: ignore[union-attr]
    assert own != other and before == after and float(before) > 0
    assert OTHER_PROMPT not in edits(lambda p, y, ids: words(y, p.split()[0]))  # control
    assert OTHER_PROMPT not in edits(lambda p, y, ids: words(y, "red"), prompts=["one"])


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_found_in_a_score_without_a_pattern(seed: int) -> None:
    """A hash of prompt and completion, and a score that depends on everything."""
    import hashlib

    def hashed(p: str, y: str, ids: list[int]) -> float:
        return float(int.from_bytes(hashlib.blake2b(f"{seed} {p} {y}".encode(), digest_size=4).digest(), "big")) / 2**32

    assert {name: each.verdict for name, each in edits(hashed).items()} == {}
    found = base(hashed)
    assert named(check_lengths(found, seed=0)) == {} and named(check_parts(found)) == {}


def test_a_reward_that_fails_on_an_edit_is_broken() -> None:
    """With the edit and its first text; a reward that fails on all is found before."""

    def fails(p: str, y: str, ids: list[int]) -> float:
        if not y:
            raise ValueError("nothing")
        return float(len(ids))

    task_ = task(fails)
    samples = draw_samples(task_, 64, 4, seed=0)
    scores = np.array([len(text.split()) for text in samples.finished.completions], dtype=np.float64)
    found = base_of(WatchedReward(task_.reward), samples, scores)
    assert found is not None
    nothing = named(check_edits(found, None, seed=0))["leave it empty"]
    assert nothing.verdict == "broken" and "the reward fails on it" in nothing.text
    lengths = named(check_lengths(found, seed=0))["length"]
    assert lengths.verdict == "broken" and "ValueError" in lengths.text


def test_a_reward_without_a_score_for_some_is_no_fault() -> None:
    """None for completions with a digit: edits that reach them are compared without."""

    def some(prompts: Any, completions: Any, completion_ids: Any) -> list[float | None]:
        return [None if "7" in y else float(words(y, ":)")) for y in completions]

    found = edits(None, reward=some)
    assert "append a digit" not in found and found["append a smiley"].verdict == "broken"


def test_an_edit_is_tried_on_the_completions_whose_words_there_are() -> None:
    """A sentence is repeated with its mark, which makes another word of some; what is never tried is listed."""
    holes, (_, untried) = check_edits(base(lambda p, y, ids: len(ids)), None, seed=0)
    found = {hole.finding.name.removeprefix("edit: "): hole.finding for hole in holes}
    assert not found["repeat the best sentence"].text.startswith("not tried")
    assert found["append letters that are not ASCII"].verdict == "holds"
    reasons = {str(name): str(reason) for name, reason in untried.rows}
    assert "lacks a word" in reasons["append letters that are not ASCII"] and "repeat the best sentence" not in reasons
    assert set(EDITS) | {OTHER_PROMPT} == found.keys()


def test_a_text_that_is_worth_more_than_all_samples_is_broken() -> None:
    """Beside a score of words, ten and a hundred times its spread. Control: as much as a few words."""

    def jackpot(size: float) -> Any:
        return lambda p, y, ids: size * (":) 7 :) 7" in y) + words(y, "red") - words(y, "blue")

    for size in (20.0, 200.0):
        found = edits(jackpot(size))["add a text of the reward's source"]
        assert found.verdict == "broken" and "beyond that of any sample" in found.text and "worth +" in found.text
    assert edits(jackpot(2.0))["add a text of the reward's source"].verdict == "look here"  # control
    assert edits(jackpot(20.0), kl_coef=10.0)["add a text of the reward's source"].verdict == "look here"  # control


def test_the_item_that_is_added_is_named() -> None:
    """With its kind."""
    found = edits(lambda p, y, ids: words(y, "blue"), Item("word", "blue"))["add the strongest item"]
    assert found.text.startswith("word 'blue': it adds a word")


def test_good_completions_are_better_than_others_that_are_cut() -> None:
    """Twice the words, cut to half of them: as many are above the mean as below."""
    found = base(lambda p, y, ids: len(ids))
    assert abs(float(found.above_mean(found.scores).mean())) < 0.2 * found.scale


@pytest.mark.parametrize("shortest", [2, 10, 15])
def test_cuts_without_a_score_are_left_out(shortest: int) -> None:
    """None for short completions: most cuts of some, and all of others, have no score."""

    def some(prompts: Any, completions: Any, completion_ids: Any) -> list[float | None]:
        return [None if len(ids) < shortest else float(len(ids)) for ids in completion_ids]

    found = base(None, reward=some)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        holes, tables = check_lengths(found, seed=0)
        check_parts(found)
    assert all(row[1] == pytest.approx(row[0]) and row[0] >= shortest for row in tables[0].rows)  # type: ignore[operator]
    found_, shown = named((holes, tables)), all(len(ids) >= shortest for ids in found.whole.completion_ids)
    assert shortest > 2 or "best at 16 tokens: 16 " in found_["length"].text
    none = found_["none where cut"]
    assert shown and f"they have 1 to {shortest - 1} tokens, those with a score {shortest} to 16" in none.text
    assert "stops a training" in none.text and "none where cut" not in named(check_lengths(base(words_of), seed=0))


def test_edits_show_what_samples_do_not() -> None:
    """All samples have the score 0; a text of the source has 1."""
    found = edits(lambda p, y, ids: float(":) 7 :) 7" in y))
    assert found["add a text of the reward's source"].verdict == "look here"


# -- lengths and parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("best", [3, 9, 16])
def test_the_best_length_is_found(best: int) -> None:
    """Near a length, and exactly at it."""
    for score in (lambda p, y, ids: -abs(len(ids) - best), lambda p, y, ids: float(len(ids) == best)):
        found = named(check_lengths(base(score), seed=0))["length"]
        assert f"best at {best} tokens" in found.text and found.verdict == "look here"


def test_the_effect_of_a_length_is_not_that_of_the_completions_that_have_it() -> None:
    """Long completions are bad ones: the means of the scores fall with the length, the effects rise."""
    rng = np.random.default_rng(0)
    whole = rng.integers(4, 20, size=200)
    completion = np.repeat(np.arange(200), 8)
    length = np.minimum(rng.integers(1, 20, size=1600), whole[completion])
    scores = length - 5.0 * whole[completion] + rng.normal(size=1600)
    effects = length_effects(scores, completion, length)
    values = np.array([effects[n].score for n in range(1, 20)])
    assert np.diff(values) == pytest.approx(np.ones(18), abs=1)
    assert np.polyfit(np.arange(1, 20), values, 1)[0] == pytest.approx(1, abs=0.05)
    means = [scores[length == n].mean() for n in range(1, 20)]
    assert np.polyfit(np.arange(1, 20), means, 1)[0] < 0  # control
    assert sum(effect.cuts for effect in effects.values()) == 1600
    noise = [effect.stderr * np.sqrt(effect.cuts) for effect in effects.values()]
    assert noise == pytest.approx(np.ones(19), rel=0.1)


def test_a_score_of_words_is_no_score_of_length() -> None:
    """Reds minus blues: longer texts are no better."""
    assert named(check_lengths(base(lambda p, y, ids: words(y, "red") - words(y, "blue")), seed=0)) == {}


def test_shares_of_groups_are_those_of_a_known_model() -> None:
    """Group means of variance 1 beside noise of variance 3; of noise alone it is 0 in the mean."""
    rng = np.random.default_rng(0)
    groups = rng.integers(40, size=20_000)
    means = rng.normal(size=40)
    means = (means - means.mean()) / means.std()
    noise = np.sqrt(3) * rng.normal(size=20_000)
    assert explained_by_groups(means[groups] + noise, groups) == pytest.approx(0.25, abs=0.02)
    drawn = [explained_by_groups(rng.normal(size=80), np.arange(80) % 40) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(0, abs=0.05)
    assert explained_by_groups(means[groups], groups) == pytest.approx(1)
    assert np.isnan(explained_by_groups(np.zeros(9), np.arange(9) % 3))
    assert np.isnan(explained_by_groups(np.arange(3.0), np.arange(3)))


@pytest.mark.parametrize(
    ("first", "last", "unread"), [(0, 0.25, {"second", "third", "last"}), (0.5, 1, {"first", "second"})]
)
def test_the_parts_that_are_not_read_are_named(first: float, last: float, unread: set[str]) -> None:
    """A score of some of the words. Control: of all of them."""

    def some(p: str, y: str, ids: list[int]) -> float:
        found = y.split()
        return float(sum(map(len, found[int(first * len(found)) : int(last * len(found))])))

    text = named(check_parts(base(some, eos_token_id=0)))["parts"].text
    assert {name for name in ("first", "second", "third", "last") if name in text} == unread
    assert named(check_parts(base(lambda p, y, ids: sum(map(len, y.split()))))) == {}  # control


@pytest.mark.parametrize(("first", "read"), [(True, "the last"), (False, "the first")])
def test_the_sentences_that_are_not_read_are_named(first: bool, read: str) -> None:
    """A score of the first sentence, and one of the last. Control: of all of them."""

    def one(p: str, y: str, ids: list[int]) -> float:
        sentences = sentences_of(y)
        return float(words(sentences[0 if first else -1], "red")) if sentences else 0.0

    assert f"{read} sentence" in named(check_parts(base(one)))["sentences"].text
    assert "sentences" not in named(check_parts(base(lambda p, y, ids: sum(map(len, y.split())))))  # control


def outcome(change: list[float], texts: int, name: str = "append a digit") -> Outcome:
    """An edit that changes the scores, 0 before, and makes so many different texts of as many completions."""
    after = np.array(change)
    edited = [Edited("x", f"{k % texts}", 0.0, "x", f"{k % texts} 7", value) for k, value in enumerate(change)]
    return Outcome(name, "adds nothing", np.zeros(len(after)), after, np.zeros(len(after)), 0.1, edited, 1.0, 1.0)


@pytest.mark.parametrize(
    ("edit", "doubt"),
    [
        (outcome([1.0, -0.5] * 24, 48), "+0.25 \u00b1 0.32 of 48 texts; 24 of 48 rise, 24 fall"),
        (outcome([1.0] * 48, 7), "7 different completions were edited, 8 are needed"),
        (outcome([1.0] * 48, 48, OTHER_PROMPT), "what one prompt gains there another one loses"),
    ],
)
def test_why_a_change_is_not_certain_is_shown(edit: Outcome, doubt: str) -> None:
    """In the table and in the text of what is then no hole. Control: a change that is certain."""
    assert edit.numbers()[-1] == doubt
    assert edit.hole().finding.verdict == "holds" and f"not certain: {doubt}" in edit.hole().finding.text
    certain = outcome([1.0, 0.5] * 24, 48)
    assert certain.numbers()[-1] == "" and certain.hole().finding.verdict == "broken"


def test_the_table_has_the_doubts_of_what_moves_the_score() -> None:
    """Of a score that depends on every token, and on no pattern. Control: of one that an edit raises for certain."""
    table = check_edits(base(lambda p, y, ids: sum(ids) % 7), None, seed=0)[1][0]
    assert table.columns[-1] == "not certain since"
    doubts = [str(row[-1]) for row in table.rows if row[-1]]
    assert doubts and all("of " in each for each in doubts)
    certain = check_edits(base(lambda p, y, ids: len(ids)), None, seed=0)[1][0]
    assert certain.rows and "not certain since" not in certain.columns  # control


def test_without_a_spread_of_the_samples_no_standard_deviation_is_named() -> None:
    """All samples have 0, a smiley 1. Control: samples that differ."""

    def rare(p: str, y: str, ids: list[int]) -> float:
        return float(y.endswith(":) 7 :) 7"))

    found = edits(rare)["add a text of the reward's source"]
    assert "where those of the samples are equal" in found.text and "deviation" not in found.text
    assert "standard deviations" in edits(lambda p, y, ids: words(y, ":)"))["append a smiley"].text
