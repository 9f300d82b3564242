"""What may be given as a reward: functions, classifiers, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.helpers.classifiers import random_classifier, word_tokenizer
from tests.helpers.completions import score_lists
from tests.helpers.tasks import make, words
from textenv.rewards import RewardModel, WeightedReward
from textenv.testing import play


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier with its tokenizer."""
    random_classifier("llama").save_pretrained(tmp_path)
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path)
    return tmp_path


def test_a_classifier_is_a_reward(folder: Path) -> None:
    """A path, a model that was loaded from one, and a compiled one score as the `RewardModel` of that path."""
    expected = RewardModel(folder)(["a"], ["b c"])[0]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert expected != pytest.approx(RewardModel(folder)(["a"], ["c"])[0])
    for given in (folder, str(folder), model, torch.compile(model), RewardModel(folder)):
        for reward in (given, [given]):
            assert play(make(words(8, reward=reward)), "a", "b c").score == pytest.approx(expected, abs=1e-5)
    two = make(words(8, reward=[model, lambda prompts, **_: [1.0] * len(prompts)], gold_reward=model))
    assert play(two, "a", "b c").score == pytest.approx(expected + 1, abs=1e-5)
    assert play(two, "a", "b c").gold_score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("given", "error", "rule"),
    [
        (lambda: random_classifier("gpt2"), ValueError, "alone has no tokenizer; pass reward=.*RewardModel"),
        (
            lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1)),
            ValueError,
            "has no tokenizer; pass reward=",
        ),
        (lambda: 3, TypeError, "reward must be a function .*got 3"),
        (lambda: [], TypeError, "must be a reward function or a list of them"),
        (lambda: [None], TypeError, "reward must be a function"),
        (lambda: {"a": 1}, Exception, "a"),
        (lambda: RewardModel, TypeError, "reward must be a function"),
    ],
)
def test_what_is_no_reward_is_refused_at_once(given: Any, error: type[Exception], rule: str) -> None:
    """When the task is made, not at the end of its first episode."""
    with pytest.raises(error, match=rule):
        make(words(reward=given()))


@pytest.mark.parametrize(
    ("make_model", "rule"),
    [
        (
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)),
            r"must have the shape \(1, 2\)",
        ),
        (
            lambda: BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)),
            "BertModel fails on a sequence .* AttributeError",
        ),
        (lambda: torch.nn.Linear(2, 2), "needs a sequence classifier, or the path or hub id of one"),
        (lambda: 7, "or the path or hub id of one, got 7"),
    ],
)
def test_a_model_that_is_no_classifier_is_refused(make_model: Any, rule: str) -> None:
    """By what it computes."""
    with pytest.raises(ValueError, match=rule):
        RewardModel(make_model(), word_tokenizer(eos_token="[END]"))


@pytest.mark.parametrize("weights", [["1.0"], "1", [None], [[1.0]], [b"1"], [1.0, 2.0], [float("nan")], [1e39], 1.0])
def test_weights_are_numbers(weights: Any) -> None:
    """One for each function: a text is none."""
    with pytest.raises(ValueError, match="reward_weights must be one finite number per function"):
        WeightedReward(lambda **_: [1.0], weights)


def test_weights_of_any_library_are_numbers() -> None:
    """Control."""
    for weights in ([2], (2.0,), torch.tensor([2.0]), [torch.tensor(2.0)]):
        assert score_lists(WeightedReward(lambda **_: [1.0], weights), ["a"], ["b"], [[1]], {}).tolist() == [2.0]  # type: ignore[arg-type]
