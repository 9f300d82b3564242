"""Rewards that fail: at random, on some completions, on all; as a training would treat each."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from tests.helpers import faulty_rewards as faulty
from tests.helpers.tasks import mdp
from textenv.reward_check import RewardReport, check_reward
from textenv.reward_check.attempts import ALONE, BATCH, Attempts
from textenv.reward_check.calls import WatchedFunction
from textenv.reward_check.contract import check_contract
from textenv.reward_check.samples import draw_samples
from textenv.rewards import FinishedCompletions, RewardError


class Flaky:
    """`faulty.sound`, but it raises at random: in a share of the calls, and for a share of the completions of one.

    Attributes:
        calls: completions of each call so far, and whether it failed.
    """

    __name__ = "flaky"

    def __init__(self, of_calls: float = 0.0, of_completions: float = 0.0, on: tuple[str, ...] = ()) -> None:
        self.shares, self.on, self.generator = (of_calls, of_completions), on, np.random.default_rng(0)
        self.calls: list[tuple[int, bool]] = []

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Any:
        """The scores, or a ConnectionError; always on the texts `on`."""
        draws = self.generator.random(1 + len(prompts))
        failed = draws[0] < self.shares[0] or bool((draws[1:] < self.shares[1]).any())
        failed |= any(text in self.on for text in completions)
        self.calls.append((len(prompts), failed))
        if failed:
            raise ConnectionError("503")
        return faulty.sound(prompts, completions, completion_ids)


def report(function: Any, **arguments: Any) -> RewardReport:
    """Of a task with few prompts, without another process."""
    task = mdp(**({"max_new_tokens": 6, "reward": function, "reward_wait": 0.0} | arguments))
    return check_reward(task, num_completions=16, other_process=False)


def beside(found: RewardReport) -> set[str]:
    """What is broken apart from the failures themselves."""
    return {each.name for each in found.broken} - {"fails"}


@pytest.mark.parametrize("shares", [(0.05, 0.0), (0.5, 0.0), (0.0, 0.02), (0.0, 0.5)])
def test_what_fails_at_random_is_named_and_blames_nothing_else(shares: tuple[float, float]) -> None:
    """With how often; all other findings are those of the reward that does not fail."""
    function = Flaky(*shares)
    found, expected = report(function), report(faulty.sound)
    fails = found["fails"]
    assert fails.verdict == "broken" and "ConnectionError: 503" in fails.example
    counted = [int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", fails.text)[:4]]
    calls = [[failed for size, failed in function.calls if (size == 1) == alone] for alone in (False, True)]
    assert counted[1] == len(calls[0]) and counted[3] == len(calls[1])
    assert counted[0] == sum(calls[0]) and counted[2] == sum(calls[1])
    assert beside(found) == beside(expected)
    same = {each.name: each.verdict for each in found.findings if each.name not in ("fails", "speed", "returns")}
    assert same == {each.name: each.verdict for each in expected.findings if each.name in same}
    assert not [each for each in expected.findings if each.name == "fails"]  # control


@pytest.mark.parametrize(
    ("on_error", "share", "verdict", "text"),
    [
        ("raise", 0.02, "broken", "stops a training"),
        ("retry", 0.02, "look here", "3 attempts of a batch in a row"),
        ("retry", 0.7, "broken", "3 attempts of a batch in a row"),
        ("skip", 0.7, "look here", "scores each of it alone, and skips"),
    ],
)
def test_the_verdict_is_that_of_a_training(on_error: Any, share: float, verdict: str, text: str) -> None:
    """What stops one is broken."""
    fails = report(Flaky(share), on_reward_error=on_error, reward_tries=3)["fails"]
    assert fails.verdict == verdict and text in fails.text


def test_completions_that_fail_always_are_skipped_where_a_training_skips_them() -> None:
    """Known ones are not tried again, and the others are checked. Control: where a training raises."""
    function = Flaky(on=("a", "b b"))
    found = report(function, on_reward_error="skip")
    assert found["fails"].verdict == "look here" and "in every attempt" in found["fails"].text
    assert "and it fails on" in found["returns"].text and found["none"].verdict == "look here"
    assert not beside(found) & {"returns", "repeats", "alone", "order", "batch"}
    assert sum(failed for _, failed in function.calls) < 20 * (BATCH + ALONE)
    found = report(Flaky(on=("a", "b b")))
    assert found["returns"].verdict == "broken" and len(found.findings) == 1


def test_a_completion_that_one_function_fails_on_has_no_sum() -> None:
    """As in a training, and not the score of the other function, as where it returns None."""
    found = report([faulty.sound, Flaky(on=("",))], on_reward_error="skip")
    assert "of the completions have no score, and are skipped" in found["none"].text


def test_a_batch_that_fails_though_no_completion_does_is_an_error() -> None:
    """Once each alone, since a failure at random is looked for. Control: one that fails at random."""
    finished = draw_samples(mdp(max_new_tokens=4), 8, 1, seed=0).finished

    def only_alone(part: FinishedCompletions) -> Any:
        if len(part) > 1:
            raise RewardError("a batch.")
        return np.zeros(1)

    attempts = Attempts()
    with pytest.raises(RewardError, match=r"a batch. None of the completions fails alone."):
        attempts.score(only_alone, finished)
    assert attempts.count == [BATCH, 8] and not attempts.at_random
    assert WatchedFunction(Flaky(0.5)).score(finished).shape == (8,)  # control


@pytest.mark.parametrize("names", ["prompt, completion", "prompts", "prompts, completions, completion_ids, answer"])
def test_a_wrong_signature_is_told_once_and_blames_no_completion(names: str) -> None:
    """The text is the error's, without an example."""
    function = eval(f"lambda {names}: [0.0]")
    found, scores, _ = check_contract(WatchedFunction(function), draw_samples(mdp(), 8, 1, seed=0))
    assert [each.verdict for each in found] == ["broken"] and scores is None and not found[0].example
    assert "TRL's signature, fn(prompts, completions, completion_ids, **columns)" in found[0].text
    assert f"({names})" in found[0].text


def test_a_second_reward_that_fails_at_random_is_named_too() -> None:
    """In the section about it. Control: one that does not fail."""
    found = report(faulty.sound, gold_reward=Flaky(of_completions=0.1))
    assert [(each.section, each.function) for each in found.findings if each.name == "fails"] == [
        ("agreement", "flaky")
    ]
    assert found["rank correlation"].verdict == "holds"
    assert "fails" not in {each.name for each in report(faulty.sound, gold_reward=faulty.sound).findings}
