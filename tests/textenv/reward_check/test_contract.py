"""The contract: functions that each break one rule are found by that rule's check, and by no other that they keep."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from tests.helpers import faulty_rewards as faulty
from tests.helpers.tasks import mdp
from tests.helpers.tokenizers import byte_level
from textenv.reward_check import Finding
from textenv.reward_check.calls import WatchedFunction
from textenv.reward_check.contract import check_contract
from textenv.reward_check.samples import Samples, draw_samples

CHAT = [[{"role": "user", "content": text}] for text in ("a b", "b")]


def samples_of(**arguments: Any) -> Samples:
    """16 completions of each of four prompts."""
    return draw_samples(mdp(**({"max_new_tokens": 4} | arguments)), 16, 16, seed=0)


def contract(function: Any, samples: Samples | None = None, **more: Any) -> tuple[dict[str, Finding], Any, float]:
    """The findings by name, the scores, and the noise."""
    found, scores, noise = check_contract(
        WatchedFunction(function), samples or samples_of(), **({"other_process": False} | more)
    )
    return {each.name: each for each in found}, scores, noise


def wrong(found: dict[str, Finding]) -> dict[str, str]:
    """The findings that do not hold, with their verdicts."""
    return {name: each.verdict for name, each in found.items() if each.verdict != "holds"}


@pytest.mark.parametrize("function", [faulty.sound, faulty.logging, faulty.asynchronous, faulty.TokenScores()])
def test_nothing_is_found_where_no_rule_is_broken(function: Any) -> None:
    """Control of all tests below; the scores are those that the function returns."""
    found, scores, noise = contract(function, other_process=True)
    assert wrong(found) == {} and noise == 0.0
    assert ("async" in found["inputs"].text) == (function is faulty.asynchronous)
    assert ("score_tokens" in found) == isinstance(function, faulty.TokenScores)
    if function is faulty.sound:
        finished = samples_of().finished
        assert scores.tolist() == faulty.sound(finished.prompts, finished.completions, finished.completion_ids)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (faulty.one_too_few, "one score per completion: 1, got 0"),
        (faulty.nan_for_short, "nan"),
        (faulty.infinite, "inf"),
        (faulty.a_string, "'1.0'"),
        (faulty.raises_on_empty, "IndexError"),
        (faulty.exits, "SystemExit"),
    ],
)
def test_what_it_returns_is_one_number_or_none_each(function: Any, text: str) -> None:
    """The shortest completion that fails alone is the example; there are no scores."""
    found, scores, _ = contract(function)
    assert wrong(found) == {"returns": "broken"} and scores is None
    assert text in found["returns"].text
    if function is faulty.raises_on_empty:
        assert found["returns"].example.startswith("alone, '' of ")


def test_none_for_every_completion_is_broken_and_for_some_is_not() -> None:
    """The share is in the text."""
    assert wrong(contract(faulty.none_for_all)[0]) == {"returns": "broken"}

    def some(prompts: list[str], completions: list[str], **rest: Any) -> list[float | None]:
        return [None if not text else float(len(text)) for text in completions]

    found, scores, _ = contract(some)
    missing = int(np.isnan(scores).sum())
    assert wrong(found) == {} and 0 < missing < 64
    assert f"{64 - missing} of 64 completions, None for {missing}" in found["returns"].text


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (faulty.noisy, {"repeats"}),
        (faulty.by_position, {"alone", "order", "batch"}),
        (faulty.sorted_scores, {"alone", "order", "batch"}),
        (faulty.by_batch_size, {"alone", "batch"}),
        (faulty.normalised, {"alone", "batch"}),
        (faulty.needs_company, {"alone"}),
        (faulty.TokenScores(error=1.0), {"score_tokens"}),
        (faulty.changes_prompts, {"arguments"}),
        (faulty.changes_completions, {"arguments"}),
        (faulty.changes_ids, {"arguments"}),
    ],
)
def test_a_broken_rule_is_found_and_no_other(function: Any, names: set[str]) -> None:
    """Each with an example or the reason."""
    found, _, _ = contract(function)
    assert wrong(found) == dict.fromkeys(names, "broken")
    assert all(found[name].example or "fails" in found[name].text for name in names)
    assert all(each.function == WatchedFunction(function).name for each in found.values())


@pytest.mark.parametrize("function", [faulty.counting, faulty.novelty])
def test_a_score_that_drifts_with_the_calls_does_not_repeat(function: Any) -> None:
    """A count of calls, and a memory of what was scored; the other checks may find it, too."""
    repeats = contract(function)[0]["repeats"]
    assert repeats.verdict == "broken"
    shares = [float(share) for share in re.findall(r"([\d.]+)% of the scores'", repeats.text)]
    assert shares or "as large as that of the scores'" in repeats.text
    assert all(share <= 100 for share in shares)


def test_the_noise_is_the_standard_deviation_of_a_score() -> None:
    """Of 0.5 in the function; a score without noise has none."""
    _, _, noise = contract(faulty.noisy, draw_samples(mdp(), 256, 4, seed=0))
    assert noise == pytest.approx(0.5, rel=0.1)


def test_a_little_noise_is_no_fault_of_the_other_checks() -> None:
    """Below a tenth of the spread it is to be looked at."""
    generator = np.random.default_rng(1)

    def little(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        return [s + 0.01 * generator.normal() for s in faulty.sound(prompts, completions, completion_ids)]

    assert wrong(contract(little)[0]) == {"repeats": "look here"}


def judge(share: float, none: float = 0.0, offset: float = 0.0, size: float = 1.0) -> Any:
    """A judge that changes a share of its grades by one, and gives none to a share of the completions.

    What it says of a completion alone differs by `offset`.
    """
    generator = np.random.default_rng(0)

    def graded(prompts: Any, completions: Any, completion_ids: Any) -> list[float | None]:
        scores = faulty.sound(prompts, completions, completion_ids)
        hashed = [sum(ids) * 7919 % 100 / 100 for ids in completion_ids]
        return [
            None if h < none else s + size * (generator.random() < share) + offset * (len(prompts) == 1)
            for s, h in zip(scores, hashed, strict=True)
        ]

    return graded


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_noise_of_any_distribution_is_no_fault_of_the_other_checks(share: float) -> None:
    """A judge that changes few of its grades, each by much. Control: one whose grades depend on the batch, too."""
    samples = draw_samples(mdp(max_new_tokens=4), 256, 4, seed=0)
    found = contract(judge(share), samples)[0]
    assert found["repeats"].verdict != "holds" and wrong(found).keys() == {"repeats"}
    assert contract(judge(share, offset=2.0), samples)[0]["alone"].verdict == "broken"  # control
    assert contract(judge(share, offset=0.3), samples)[0]["alone"].verdict == "broken" or share == 0.5


def test_completions_without_a_score_do_not_hide_the_noise() -> None:
    """None for most completions: the noise is that of the others."""
    samples = draw_samples(mdp(max_new_tokens=4), 256, 4, seed=0)
    found, scores, noise = contract(judge(0.5, none=0.8), samples)
    assert np.isnan(scores).mean() > 0.7 and noise == pytest.approx(0.5, rel=0.15)
    assert wrong(found) == {"repeats": "broken"}


def test_a_score_that_is_none_at_random_does_not_repeat() -> None:
    """The same share of None elsewhere is no other fault."""
    generator = np.random.default_rng(0)

    def sometimes(prompts: Any, completions: Any, completion_ids: Any) -> list[float | None]:
        scores = faulty.sound(prompts, completions, completion_ids)
        return [None if generator.random() < 0.2 else score for score in scores]

    found, _, noise = contract(sometimes, draw_samples(mdp(max_new_tokens=4), 64, 4, seed=0))
    assert wrong(found) == {"repeats": "look here"} and noise == 0.0


@pytest.mark.parametrize("size", [1e-8, 1e-4, 1.0, 1e6])
def test_the_scale_of_a_score_decides_nothing(size: float) -> None:
    """The same verdicts for a multiple."""

    def scaled(function: Any) -> Any:
        return lambda prompts, completions, completion_ids: [
            size * score for score in function(prompts, completions, completion_ids)
        ]

    assert wrong(contract(scaled(faulty.sound))[0]) == {}
    assert wrong(contract(scaled(faulty.by_position))[0]).keys() == {"alone", "order", "batch"}


def test_rounding_is_no_dependence_on_the_batch() -> None:
    """Sums in float32 whose order is the batch's; the size of it is in the text."""

    def rounded(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        company = np.float32(len(prompts))
        scores = np.array(faulty.sound(prompts, completions, completion_ids), dtype=np.float32) / 3
        return ((scores + company) - company).tolist()

    found, _, _ = contract(rounded)
    assert wrong(found) == {}
    assert "apart from rounding" in found["alone"].text and "apart from" not in contract(faulty.sound)[0]["alone"].text


@pytest.mark.parametrize(("size", "verdict"), [(1e-2, "broken"), (1e-5, "holds")])
def test_a_small_dependence_on_the_batch_is_one(size: float, verdict: str) -> None:
    """A hundredth of the spread is more than rounding."""

    def little(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        scores = faulty.sound(prompts, completions, completion_ids)
        return [score + size * 0.7 * (len(prompts) == 1) for score in scores]

    found, scores, _ = contract(little)
    assert 0.3 < scores.std() < 0.7 and found["alone"].verdict == verdict


def test_what_is_printed_is_counted_and_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    """With the first line. Control: what is written to standard error is; and what does not print has no such line."""

    def printing(completions: Any, **rest: Any) -> Any:
        print("scored", len(completions))
        sys.stdout.buffer.write(b"more\xff\n")
        print("warned", file=sys.stderr)
        subprocess.run([sys.executable, "-c", "print('from a child')"], stdout=sys.stdout, check=True)
        return np.array([len(each) for each in completions], dtype=np.float32)

    samples = draw_samples(mdp(max_new_tokens=4), 8, 1, seed=0)
    found, _, _ = contract(printing, samples)
    assert wrong(found).keys() <= {"speed"} and found["prints"].example == "the first is 'scored 8'"
    calls = int(re.findall(r"lines in (\d+) calls", found["prints"].text)[0])
    assert f"{2 * calls} lines in" in found["prints"].text
    out, err = capfd.readouterr()
    assert out == "" and err.count("warned") == calls == err.count("from a child")
    assert "prints" not in contract(faulty.sound)[0]


def test_another_process_has_another_seed_of_hash() -> None:
    """Control: a function that does not use it, above."""
    found, _, _ = contract(faulty.by_hash, other_process=True)
    assert wrong(found) == {"process": "broken"} and "in another process" in found["process"].example


def test_what_depends_on_the_batch_does_not_depend_on_the_process() -> None:
    """Minus the mean of the batch, by the position in it. Control: by the seed of `hash`, above."""
    for function in (faulty.normalised, faulty.by_position):
        found, _, _ = contract(function, other_process=True)
        assert found["process"].verdict == "holds" and found["batch"].verdict == "broken"


def test_what_cannot_be_tried_elsewhere_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lambda, a process that ends, a reward model."""
    found, _, _ = contract(lambda completions, **rest: [float(len(each)) for each in completions], other_process=True)
    assert wrong(found) == {"process": "look here"} and "cannot be pickled" in found["process"].text
    found, _, _ = contract(faulty.ends_elsewhere, other_process=True)
    assert wrong(found) == {"process": "look here"} and "ended with exit code 0" in found["process"].text
    monkeypatch.setattr(faulty.TokenScores, "__module__", "textenv.rewards.classifier")
    found, _, _ = contract(faulty.TokenScores(), other_process=True)
    assert wrong(found) == {"process": "look here"} and "a reward model" in found["process"].text


def test_a_function_that_fails_elsewhere_is_broken() -> None:
    """It depends on what this process has imported."""
    found, _, _ = contract(faulty.fails_elsewhere, other_process=True)
    assert wrong(found) == {"process": "broken"} and "no pytest here" in found["process"].text


def test_the_other_process_has_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where warnings are errors, too."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert wrong(contract(faulty.sound, other_process=True)[0]) == {}


def test_a_column_that_cannot_be_copied_is_handed_over_as_it_is() -> None:
    """A lock: training works with it. Control: an argument beside it that is changed is found."""
    samples = samples_of(prompts=[{"prompt": "a b", "fact": [threading.Lock()]}])
    found, _, _ = contract(faulty.sound, samples)
    assert wrong(found) == {"arguments": "look here"} and "cannot be copied, fact: " in found["arguments"].text
    assert contract(faulty.changes_ids, samples)[0]["arguments"].verdict == "broken"  # control


def test_the_speed_is_that_of_the_function_without_a_cache() -> None:
    """The first call is slow and later ones are not; copies of large columns are not its seconds."""
    seen: dict[str, float] = {}

    def cached(prompts: list[str], completion_ids: Any, completions: Any, **columns: Any) -> list[float]:
        if not seen:
            time.sleep(0.5)
        seen.update(dict.fromkeys(completions, 1.0))
        return faulty.sound(prompts, completions, completion_ids)

    assert wrong(contract(cached)[0]) == {"speed": "look here"}
    large = samples_of(prompts=[{"prompt": "a b", "fact": [{"x": [i]} for i in range(20_000)]}])
    assert wrong(contract(faulty.sound, large)[0]) == {}


def test_a_column_that_is_changed_is_found_and_the_task_keeps_it() -> None:
    """Also inside of a value."""
    prompts = [{"prompt": "a b", "fact": ["x"]}, {"prompt": "b", "fact": ["y"]}]
    samples = samples_of(prompts=prompts, reward=faulty.changes_columns)
    found, _, _ = contract(faulty.changes_columns, samples)
    assert wrong(found) == {"arguments": "broken"} and found["arguments"].example.startswith("fact: ")
    assert samples.mdp.prompts.columns_of([0, 1]) == {"fact": [["x"], ["y"]]}


def test_a_parameter_without_a_column_is_named() -> None:
    """Its default is always used. Control: with the column."""
    found, _, _ = contract(faulty.missing_column)
    assert wrong(found) == {"inputs": "look here"} and "'answer'" in found["inputs"].text
    samples = samples_of(prompts=[{"prompt": "a", "answer": "b"}])
    assert wrong(contract(faulty.missing_column, samples)[0]) == {}


def test_a_draw_from_a_global_generator_is_named() -> None:
    """Of the library that it belongs to."""
    found, _, _ = contract(faulty.drawing)
    assert wrong(found) == {"random numbers": "look here"}
    assert "the global generator of random:" in found["random numbers"].text


def test_a_slow_function_is_to_be_looked_at() -> None:
    """Where it takes longer than sampling."""

    def slow(prompts: list[str], completion_ids: Any, completions: Any) -> list[float]:
        time.sleep(0.002 * len(prompts))
        return faulty.sound(prompts, completions, completion_ids)

    assert wrong(contract(slow)[0]) == {"speed": "look here"}


def test_what_the_checks_cost_is_said() -> None:
    """Calls and scores, as counted in the function."""
    sizes: list[int] = []

    def counted(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        sizes.append(len(prompts))
        return faulty.sound(prompts, completions, completion_ids)

    assert contract(counted)[0]["speed"].text.endswith(f"took {len(sizes)} calls for {sum(sizes)} scores")


def test_conversations_are_handed_over_as_messages() -> None:
    """And said to be."""

    def by_role(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        assert all(prompt[0]["role"] == "user" for prompt in prompts)
        return [float(len(completion[0]["content"])) for completion in completions]

    samples = samples_of(tokenizer=byte_level(), prompts=CHAT, max_prompt_length=200, max_new_tokens=12)
    found, _, _ = contract(by_role, samples)
    assert wrong(found) == {} and "prompts are messages" in found["inputs"].text
