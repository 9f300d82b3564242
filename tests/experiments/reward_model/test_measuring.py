"""What is measured of a reward model's margins: agreement, calibration and length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from experiments.reward_model.measuring import (
    AGREEMENT,
    LENGTH,
    agreement,
    describe_calibration,
    describe_length,
    length_bias,
    measure,
)
from experiments.reward_model.pairs import Pair
from tests.helpers.classifiers import random_classifier, word_tokenizer
from textenv.rewards import RewardModel

DRAWN = st.lists(st.tuples(st.floats(-3, 3).map(lambda x: round(x, 2)), st.integers(-3, 3)), min_size=1, max_size=20)


def test_agreement_by_hand() -> None:
    """Accuracy, log loss and calibration of four pairs; margins of 0 are calibrated guesses."""
    guess = agreement(np.zeros(10))
    assert (guess["accuracy"], guess["calibration_error"]) == (0.5, 0.0)
    assert guess["log_loss"] == pytest.approx(np.log(2))
    margin = np.log([3.0, 3.0, 3.0, 1 / 3.0])  # confidence 0.75 each, three of four correct: calibrated
    calibrated = agreement(margin)
    assert calibrated["accuracy"] == 0.75 and calibrated["mean_confidence"] == pytest.approx(0.75)
    assert calibrated["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    overconfident = agreement(10 * margin)
    assert overconfident["accuracy"] == 0.75 and overconfident["calibration_error"] == pytest.approx(0.25, abs=1e-3)


def test_a_calibrated_model_has_the_calibration_error_that_is_named() -> None:
    """On average over draws of few pairs, though without bias it would be 0; control: an overconfident one has more."""
    rng = np.random.default_rng(0)
    size = rng.uniform(0, 3, (2000, 60))
    calibrated = np.where(rng.random(size.shape) < 1 / (1 + np.exp(-size)), size, -size)
    found = [agreement(margin) for margin in calibrated]
    error = np.mean([each["calibration_error"] for each in found])
    by_chance = np.mean([each["calibration_error_by_chance"] for each in found])
    assert 0.05 < by_chance == pytest.approx(error, rel=0.05)
    assert np.mean([agreement(4 * margin)["calibration_error"] for margin in calibrated]) > 1.5 * error  # control
    assert "0.08 of so many pairs by chance" in describe_calibration(
        agreement(calibrated[0]) | {"calibration_error_by_chance": 0.08}
    )


@given(DRAWN, st.data())
def test_length_bias_does_not_depend_on_which_is_preferred(drawn: list[tuple[float, int]], data: st.DataObject) -> None:
    """Any pairs exchanged: what the model does with length stays; all of them: the longer is chosen as often less."""
    margin, length = np.array(drawn, dtype=np.float64).T
    sign = np.array(data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=len(drawn), max_size=len(drawn))))
    found, exchanged = length_bias(margin, length), length_bias(sign * margin, sign * length)
    for name in ("prefers_longer", "length_correlation"):
        assert exchanged[name] == (found[name] if found[name] is None else pytest.approx(found[name]))
    other = length_bias(-margin, -length)
    assert other["longer_is_chosen"] == pytest.approx(1 - float(found["longer_is_chosen"] or 0))
    assert other["pairs_longer_chosen"] == found["pairs_shorter_chosen"]


@given(DRAWN)
def test_a_model_of_length_alone_is_as_accurate_as_its_rule(drawn: list[tuple[float, int]]) -> None:
    """Margin = length: right where the longer is preferred, and nowhere else. Minus length: the reverse."""
    length = np.array(drawn, dtype=np.float64)[:, 1]
    assume((length > 0).any() and (length < 0).any())
    found, reverse = length_bias(length, length), length_bias(-length, length)
    assert found["longer_is_chosen"] == pytest.approx(agreement(length)["accuracy"])
    assert (found["prefers_longer"], found["length_correlation"]) == (1, pytest.approx(1))
    assert (found["accuracy_longer_chosen"], found["accuracy_shorter_chosen"]) == (1, 0)
    assert (reverse["prefers_longer"], reverse["length_correlation"]) == (0, pytest.approx(-1))
    assert (reverse["accuracy_longer_chosen"], reverse["accuracy_shorter_chosen"]) == (0, 1)


def test_a_model_that_ignores_length() -> None:
    """Control: about half, and no correlation; accuracy is that of the two sides together."""
    rng = np.random.default_rng(0)
    margin, length = rng.normal(0.5, 1, 4000), rng.choice([-2.0, -1.0, 1.0, 2.0, 3.0], 4000)
    exchanged = rng.choice([-1.0, 1.0], 4000)
    found = length_bias(margin * exchanged, length)
    assert found["prefers_longer"] == pytest.approx(0.5, abs=0.03) and abs(found["length_correlation"] or 1) < 0.05
    sides = [
        (found[f"pairs_{side}_chosen"] or 0, found[f"accuracy_{side}_chosen"] or 0) for side in ("longer", "shorter")
    ]
    together = sum(count * accuracy for count, accuracy in sides) / 4000
    assert together == pytest.approx(agreement(margin * exchanged)["accuracy"])


def test_lengths_are_tokens_as_the_model_reads_them() -> None:
    """Of one length: nothing is known. What is cut off does not count."""
    reward = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    equal, _ = measure(reward, [Pair("g", "a  b", "c d"), Pair("g", "a", "b")], 1, one_prompt=True)
    assert equal["longer_is_chosen"] == 0.5 and equal["prefers_longer"] is equal["length_correlation"] is None
    assert "have the same length" in describe_length(equal)
    different, test = measure(reward, [Pair("g", "a b c", "d"), Pair("g", "a", "d e")], 2, one_prompt=True)
    assert set(different) == {*AGREEMENT, *LENGTH} and different["p_value"] == test.p_value
    assert different["pairs_longer_chosen"] == different["pairs_shorter_chosen"] == 1
    counts = {name: different[name] for name in ("pairs", "pairs_longer_chosen", "pairs_shorter_chosen")}
    assert all(isinstance(count, int) for count in counts.values()) and counts["pairs"] == 2
    assert "preferred is right about 50% of the pairs" in describe_length(different)
    assert reward.max_length == 12
    long, _ = measure(reward, [Pair("g", "a " * 20, "b " * 30)], 1, one_prompt=True)
    assert long["prefers_longer"] is None
