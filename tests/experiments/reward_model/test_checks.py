"""Pairs from which no reward model can be learned: each kind ends in a sentence, and no model is saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import NotLearned
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.reward_model.checks import check_consistent
from experiments.reward_model.pairs import Pair, split
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.commands import call

LONG = " ".join(["a"] * 20)


def at_random(count: int) -> list[Pair]:
    """Completions and preferences without a rule."""
    drawn = np.random.default_rng(1).choice(list("abcdefgh"), (2 * count, 2, 4))
    both = [(" ".join(first), " ".join(second)) for first, second in drawn if list(first) != list(second)]
    return [Pair("g h", *pair) for pair in both[:count]]


def contradicted(count: int) -> list[Pair]:
    """Each pair and its contradiction."""
    return [each for p in at_random(count) for each in (p, Pair(p.prompt, p.rejected, p.chosen))]


KINDS: dict[str, tuple[Callable[[], list[Pair]], str]] = {
    "labels at random": (
        lambda: at_random(60),
        "no better than a guess.* of 12 different held-out pairs in 12 groups",
    ),
    "contradictions": (lambda: contradicted(30), "60 of 60 pairs are contradicted.*there is nothing to learn"),
    "white space": (lambda: [Pair(f"g {i}", "a  b", "a b") for i in range(30)], "look alike.*white space"),
    "beyond the limit": (lambda: [Pair(str(i), f"b {LONG}", f"c {LONG}") for i in range(30)], "look alike.*last 12"),
    "unknown words": (lambda: [Pair(f"hi {i}", "Paris", "Rome") for i in range(30)], "24 of 24 pairs to train on"),
    "copies": (lambda: [Pair("g", "a", "b")] * 60, "too few different pairs: 0 pairs to train on and 1 different"),
    "copies of two": (
        lambda: [Pair("g", "a", "b")] * 30 + [Pair("h", "a", "b")] * 30,
        "too few prompts: 30 pairs to train on and 1 prompts held out",
    ),
    "one pair": (lambda: at_random(1), "too few different pairs: 0 pairs to train on"),
    "ranked lists of few prompts": (
        lambda: [Pair(f"g {i}", *pair) for i in "abcdefgh" for pair in combinations(["a a", "a b", "b b", "c"], 2)],
        "too few prompts: 36 pairs to train on and 2 prompts held out, and at least 1 and 5",
    ),
    "a few": (lambda: at_random(20), "16 pairs to train on and 4 different pairs held out, and at least 1 and 5"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_cannot_be_better_than_a_guess_is_not_saved(kind: str, tmp_path: Path) -> None:
    """The exit code is 1, the reason is a sentence, and there is no model in the folder."""
    make, reason = KINDS[kind]
    random_classifier("gpt2").save_pretrained(tmp_path / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path / "start")
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    path.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in make()))
    config = RewardModelConfig(path, str(tmp_path / "start"), out, held_out=0.2, learning_rate=1e-2)
    with pytest.raises(NotLearned, match=reason) as error:
        reward_model(config)
    assert "\n" not in str(error.value)
    assert not out.exists() or {each.name for each in out.iterdir()} == {"checkpoint", "training.json"}
    if kind == "copies":
        ended = call("reward-model", "--pairs", str(path), "--model", str(tmp_path / "start"), "--out", str(out))
        assert ended.returncode == 1 and "too few different pairs" in ended.stderr and "Traceback" not in ended.stderr
        path.write_text('{"prompt": "g", "chosen": "a", "rejected": "a"}\n')  # control: no pair
        ended = call("reward-model", "--pairs", str(path), "--model", str(tmp_path / "start"), "--out", str(out))
        assert ended.returncode == 2 and "chosen and rejected are the same" in ended.stderr


def test_pairs_with_a_rule_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control: as many; a few contradictions among them are said."""
    random_classifier("gpt2").save_pretrained(tmp_path / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path / "start")
    path = write_pairs(tmp_path / "pairs.jsonl", 80)
    first = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write(json.dumps(first | {"chosen": first["rejected"], "rejected": first["chosen"]}) + "\n")
    config = RewardModelConfig(
        path, str(tmp_path / "start"), tmp_path / "out", held_out=0.2, learning_rate=1e-2, epochs=3
    )
    assert reward_model(config)["p_value"] < 0.01
    assert "2 of 81 pairs are contradicted: another pair" in capsys.readouterr().out


def test_preferences_that_differ_are_no_contradiction(tmp_path: Path) -> None:
    """Of another prompt; or a majority: three annotators of four."""
    first = Pair("p", "a", "b")
    check_consistent(tmp_path, [first, Pair("q", "b", "a")])
    check_consistent(tmp_path, [first] * 3 + [Pair("p", "b", "a")])
    with pytest.raises(NotLearned, match="4 of 4 pairs are contradicted"):
        check_consistent(tmp_path, [first] * 2 + [Pair("p", "b", "a")] * 2)


def test_copies_and_contradictions_are_on_one_side() -> None:
    """Else a model would be measured on pairs that it was trained on; control: different pairs are on both."""
    pairs = contradicted(20) * 3
    train, test = split(pairs, 0.3, np.random.default_rng(0))
    sides = [{frozenset(pair[1:]) for pair in side} for side in (train, test)]
    assert not sides[0] & sides[1] and min(map(len, sides)) > 1 and len(train) + len(test) == len(pairs)
