"""A sequence classifier as reward: the same score in any company, from any kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from agents import collect
from agents.sampling import new_generator
from tests.tasks import PROMPTS, words
from tests.test_gradients import random_policy
from textenv.rewards import RewardModel

SHAPES = {
    "bert": lambda **s: BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        **s,
    ),
    "gpt2": lambda **s: GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=12, **s),
    "llama": lambda **s: LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        **s,
    ),
}
TEXTS = ["a", "b a", "a b c d", "d", "c c c", "b d a c b", "a a", "d c"]


def tokenizer(**special: str) -> Any:
    """A word a token."""
    vocabulary = {word: i for i, word in enumerate(["[END]", *"abcdefgh"])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def classifier(kind: str, num_labels: int = 1, **settings: Any) -> Any:
    """A random one, far from constant."""
    torch.manual_seed(0)
    config = SHAPES[kind](vocab_size=9, num_labels=num_labels, initializer_range=0.5, pad_token_id=None, **settings)
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_a_score_does_not_depend_on_the_company(kind: str) -> None:
    """Alone, in batches of any size, in any order: the same; other texts have other scores."""
    scores = RewardModel(classifier(kind), tokenizer(eos_token="[END]"))
    prompts = ["b"] * len(TEXTS)
    alone = [scores(prompts=["b"], completions=[text], completion_ids=[[1]])[0] for text in TEXTS]
    for batch_size in (1, 3, 8):
        batched = RewardModel(classifier(kind), tokenizer(eos_token="[END]"), batch_size=batch_size)
        np.testing.assert_allclose(batched(prompts, TEXTS), alone, atol=1e-5)
        np.testing.assert_allclose(batched(prompts, TEXTS[::-1]), alone[::-1], atol=1e-5)
    assert np.ptp(alone) > 0.1


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_the_score_is_the_models_own_logit(kind: str) -> None:
    """Prompt, a space, completion, through the model without padding; white space at the joint is kept as it is."""
    model, tokens = classifier(kind), tokenizer(eos_token="[END]")
    scores = RewardModel(model, tokens)
    expected = model(input_ids=torch.tensor([tokens("b a b c d")["input_ids"]])).logits.item()
    assert scores(["b a b"], ["c d"])[0] == pytest.approx(expected, abs=1e-5)
    assert scores(["b a b"], [" c d"])[0] == pytest.approx(expected, abs=1e-5)
    assert scores(["b a"], ["c d"])[0] != pytest.approx(expected, abs=1e-3)  # control: the prompt is read


def test_several_labels_give_log_odds() -> None:
    """log p(label) - log(1 - p(label)), by index or name; without a label the error lists them."""
    names = {0: "bad", 1: "fair", 2: "good"}
    model = classifier("gpt2", 3, id2label=names, label2id={name: i for i, name in names.items()})
    tokens = tokenizer(eos_token="[END]")
    probs = model(input_ids=torch.tensor([tokens("a b")["input_ids"]])).logits.softmax(dim=1)[0].detach()
    for label in (2, "good"):
        found = RewardModel(model, tokens, label=label)(["a"], ["b"])[0]
        assert found == pytest.approx(float(torch.logit(probs[2])), abs=1e-5)
    for wrong in (None, "best", 3):
        with pytest.raises(ValueError, match=r"labels \{0: 'bad'.*pass label="):
            RewardModel(model, tokens, label=wrong)


def test_normalisation_is_kept_with_the_model(tmp_path: Path) -> None:
    """`score_mean` and `score_std` travel in the config; a path is all that is needed."""
    model, tokens = classifier("llama"), tokenizer(eos_token="[END]")
    plain = RewardModel(model, tokens)(["a"] * len(TEXTS), TEXTS)
    model.config.score_mean, model.config.score_std = 0.5, 2.0
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    loaded = RewardModel(tmp_path)(["a"] * len(TEXTS), TEXTS)
    np.testing.assert_allclose(loaded, (np.array(plain) - 0.5) / 2.0, atol=1e-5)


def test_texts_that_are_too_long_lose_their_beginnings() -> None:
    """The last words count, the first do not; there is no error at the model's limit."""
    scores = RewardModel(classifier("gpt2"), tokenizer(eos_token="[END]"))
    long = "c d " * 6
    assert scores(["a a a"], [long]) == pytest.approx(scores(["b b b"], [long]))
    assert scores(["a a a"], ["c d"]) != pytest.approx(scores(["b b b"], ["c d"]))


def test_it_pays_in_an_environment() -> None:
    """`collect` pays what the model says of each text, once, on the last token; the model is not trained."""
    model = classifier("bert")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    reward = RewardModel(model, tokenizer(eos_token="[END]"))
    env = gym.make("textenv/Text-v0", **words(prompts=PROMPTS, reward=reward))
    rollout = collect(env, random_policy(env), 32, generator=new_generator("cpu", 0))
    expected = reward(rollout.prompts.tolist(), rollout.completions.tolist())
    np.testing.assert_allclose(rollout.scores.numpy(), expected, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_bad_models_are_refused() -> None:
    """No tokenizer, nothing to pad with, a senseless batch size."""
    with pytest.raises(ValueError, match="needs the classifier's tokenizer"):
        RewardModel(classifier("gpt2"))
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        RewardModel(classifier("gpt2"), tokenizer())
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        RewardModel(classifier("gpt2"), tokenizer(eos_token="[END]"), batch_size=0)
