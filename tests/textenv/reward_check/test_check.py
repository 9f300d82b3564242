"""`check_reward` as users call it: whole reports on tasks of every kind, with holes and without."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers import faulty_rewards as faulty
from tests.helpers.hole_rewards import HOLES, HONEST, reward_of
from tests.helpers.tasks import count_words, golden, half, letter_values, make, stories, words
from tests.helpers.tokenizers import byte_level
from textenv import TextMDP
from textenv.reward_check import RewardReport
from textenv.reward_check import check as module
from textenv.reward_check.samples import Samples, draw_samples
from textenv.rewards import WeightedReward, vader
from textenv.shaping import length_penalty
from textenv.testing import check_reward


def check(env: Any, **arguments: Any) -> RewardReport:
    """The report, without another process; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return check_reward(env, **({"other_process": False} | arguments))


def holes(report: RewardReport) -> list[str]:
    """The names of the holes, in their order."""
    return [each.name for each in report.findings if each.section == "holes"]


@pytest.fixture(scope="module")
def sampled() -> Samples:
    """64 completions of the small language model for each of 8 prompts, sampled once for all rewards."""
    from tests.helpers.paths import ASSETS

    if not ASSETS.is_dir():
        pytest.skip("the real models and data are not on this machine")
    prompts = (ASSETS / "tinystories" / "prompts.txt").read_text(encoding="utf-8").splitlines()[:8]
    return draw_samples(TextMDP(**stories(ASSETS, prompts=prompts, max_new_tokens=40)), 64, 8, seed=0)


@pytest.fixture
def on_stories(sampled: Samples, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The report on a reward of these completions."""
    monkeypatch.setattr(module, "draw_samples", lambda *_: sampled)

    def on(reward: Any) -> RewardReport:
        monkeypatch.setattr(sampled.mdp, "reward", WeightedReward(reward))
        return check(sampled.mdp)

    return on


@pytest.mark.parametrize("hole", HOLES)
def test_a_hole_is_near_the_top(hole: str, on_stories: Any) -> None:
    """Of rewards on stories: among the first three findings."""
    score, names = HOLES[hole]
    found = holes(on_stories(reward_of(score)))
    assert names & set(found[:3]), found[:6]


@pytest.mark.parametrize("reward", HONEST)
def test_an_honest_reward_is_not_broken(reward: str, on_stories: Any) -> None:
    """Control of the above."""
    report = on_stories(reward_of(HONEST[reward]))
    report.assert_holds()
    report.assert_holds("edit: append four smileys", "feature: digits", "feature: emoticons")


def test_vader_names_its_words(on_stories: Any) -> None:
    """Words of its lexicon are the first that explain the score."""
    pytest.importorskip("vaderSentiment")
    report = on_stories(vader)
    named = [name.split("'")[1] for name in holes(report) if name.startswith("word: ")]
    scores = vader([""] * len(named), named, [[]] * len(named))
    assert named and all(score for score in scores)


def test_reward_hacking_names_its_hole() -> None:
    """Four smileys are worth more than they cost, emoticons are shifted."""
    report = check(gym.make("textenv/RewardHacking-v0"))
    assert report["edit: append four smileys"].verdict == "broken"
    assert report["feature: emoticons"].verdict == "look here"
    assert {"edit: append four smileys", "feature: emoticons"} <= set(holes(report)[:3])
    assert report["under the optimum"].verdict == "look here"
    with pytest.raises(AssertionError, match="append four smileys"):
        report.assert_holds()


def test_the_gold_reward_of_reward_hacking_has_no_such_hole() -> None:
    """Control: as the reward itself."""
    env = gym.make("textenv/RewardHacking-v0")
    env.unwrapped.mdp.reward = env.unwrapped.mdp.gold_reward  # type: ignore[attr-defined]
    report = check(env)
    report.assert_holds()
    assert "edit: append four smileys" not in holes(report)
    report.assert_holds("edit: append four smileys", "edit: append a smiley", "feature: digits")
    with pytest.raises(KeyError, match="no finding 'edit: append a smile'"):
        report.assert_holds("edit: append a smile")
    assert "edit: append a smiley: " not in str(report)


@pytest.mark.parametrize("name", ["TajMahal-v0", "Toy-v0"])
def test_tasks_of_the_package_pass(name: str) -> None:
    """Nothing is broken, in each contract."""
    report = check(gym.make(f"textenv/{name}"))
    report.assert_holds()
    report.assert_holds("returns", "repeats", "alone", "order", "batch", "arguments", "spread")


@pytest.mark.parametrize("seed", range(8))
def test_a_random_reward_has_no_hole(seed: int) -> None:
    """Toys of few texts, each many times: what they do by chance is not broken."""
    check(gym.make("textenv/Toy-v0", task_seed=seed), seed=seed).assert_holds()
    check(gym.make("textenv/Toy-v0", task_seed=seed, vocab_size=20, max_new_tokens=16), seed=seed).assert_holds()


def some_none(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float | None]:
    """None for one of the prompts, and for some completions of the others."""
    scores = letter_values(prompts, completions, completion_ids)
    return [
        None if p == "b b" or len(ids) == 1 else s for p, ids, s in zip(prompts, completion_ids, scores, strict=True)
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"kl_coef": 0.0},
        {"kl_coef": 1e4},
        {"prompts": ["a"]},
        {"prompts": ["a"], "kl_coef": 0.0},
        {"max_new_tokens": 1},
        {"shaping": [length_penalty(0.25)]},
        {"reward": [letter_values, count_words], "reward_weights": [1.0, -0.5]},
        {"reward": [letter_values, some_none]},
        {"reward": some_none},
        {"reward": some_none, "gold_reward": golden},
        {"gold_reward": some_none},
        {"gold_reward": half},
        {"gold_reward": faulty.none_for_all},
        {"reward": faulty.asynchronous},
        {"reward": faulty.TokenScores()},
        {
            "prompts": [{"prompt": "a", "answer": "b"}, {"prompt": "b a", "answer": "a"}],
            "reward": faulty.missing_column,
        },
    ],
)
def test_tasks_of_every_kind_are_checked(arguments: dict[str, Any]) -> None:
    """Without an error or a warning; all that is printed is a number or a text."""
    report = check(make(words(**arguments)), num_completions=16)
    text = str(report)
    assert "inf" not in text.replace("infer", "") and not any(" nan" in line for line in text.splitlines())
    if "gold_reward" in arguments:
        assert any(each.section == "agreement" for each in report.findings)


@pytest.mark.parametrize("count", [8, 9, 64])
def test_few_completions_are_enough_to_run(count: int) -> None:
    """8 at least."""
    check(make(words()), num_completions=count)
    with pytest.raises(ValueError, match="num_completions"):
        check(make(words()), num_completions=7)


def test_conversations_are_checked() -> None:
    """With a tokenizer of bytes."""
    prompts = [[{"role": "user", "content": "hello"}], [{"role": "user", "content": "are you there"}]]

    def by_length(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        return [float(len(each[0]["content"])) for each in completions]

    report = check(TextMDP(byte_level(), prompts, by_length, max_new_tokens=12, max_prompt_length=200, kl_coef=0.1))
    assert "messages" in report["inputs"].text and report["returns"].verdict == "holds"


@pytest.mark.parametrize(
    ("reward", "name"),
    [
        (half, "spread"),
        (lambda prompts, completions, completion_ids: [float(len(p)) for p in prompts], "spread"),
        (faulty.none_for_all, "returns"),
        (faulty.one_too_few, "returns"),
        (faulty.infinite, "returns"),
        (faulty.exits, "returns"),
        (faulty.raises_on_empty, "returns"),
        (faulty.needs_company, "alone"),
        (faulty.normalised, "batch"),
        (faulty.noisy, "repeats"),
    ],
)
def test_what_is_broken_is_named(reward: Any, name: str) -> None:
    """With the finding's function, as an assertion with its text."""
    report = check(make(words(reward=reward)), num_completions=16)
    assert report[name].verdict == "broken" and report[name] in report.broken
    with pytest.raises(AssertionError, match=name):
        report.assert_holds()
    with pytest.raises(AssertionError, match=name):
        report.assert_holds(name)


def test_of_several_functions_the_broken_one_is_named() -> None:
    """Its contract is checked apart, and the sum's signal together."""
    report = check(make(words(reward=[letter_values, faulty.normalised])), num_completions=16)
    assert [each.function for each in report.findings if each.name == "batch"] == ["letter_values", "normalised"]
    assert report["batch"].function == "normalised" and report["batch"].verdict == "broken"
    assert len([each for each in report.findings if each.name == "spread"]) == 1


def test_the_number_of_scores_is_bounded() -> None:
    """Four of each of K completions and at most two thousand others, in about sixty calls."""
    sizes: list[int] = []

    def counted(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        sizes.append(len(prompts))
        return letter_values(prompts, completions, completion_ids)

    check(make(words(reward=counted, max_new_tokens=16)), num_completions=256)
    assert 4 * 1024 < sum(sizes) < 4 * 1024 + 2000 and len(sizes) < 70


def test_the_same_seed_is_the_same_report() -> None:
    """But for the seconds."""

    def lines(seed: int) -> list[str]:
        text = str(check(make(words()), num_completions=16, seed=seed))
        return [line for line in text.splitlines() if "speed" not in line]

    assert lines(3) == lines(3) and lines(3) != lines(4)


def test_nothing_of_the_environment_is_changed() -> None:
    """Its state, its generator and its prompts."""
    env = make(words())
    env.reset(seed=0)
    before = env.unwrapped.np_random.bit_generator.state
    check(env, num_completions=16)
    assert env.unwrapped.np_random.bit_generator.state == before
    assert np.isfinite(env.step(1)[1])


def test_two_rewards_of_one_name_are_told_apart() -> None:
    """By their numbers; a name that one reward has alone stays."""
    report = check(make(words(reward=[letter_values, letter_values, count_words])), num_completions=8)
    names = {each.function for each in report.findings if each.name == "returns"}
    assert names == {"letter_values, reward 1", "letter_values, reward 2", "count_words"}
