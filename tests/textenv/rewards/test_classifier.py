"""A sequence classifier as reward: the same score in any batch, from any kind of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import textenv.rewards
from agents.sampling import collect, new_generator
from tests.helpers.classifiers import CLASSIFIERS, random_classifier, word_tokenizer
from tests.helpers.policies import random_policy
from tests.helpers.tasks import PROMPTS, words
from tests.helpers.tokenizers import byte_level
from textenv.data import ConversationText, WordTokenizer
from textenv.rewards import RewardModel

COMPLETIONS = ["a", "b a", "a b c d", "d", "c c c", "b d a c b", "a a", "d c"]


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_a_score_does_not_depend_on_the_batch(kind: str) -> None:
    """Alone, in batches of any size, in any order: the same; other completions have other scores."""
    scores = RewardModel(random_classifier(kind), word_tokenizer(eos_token="[END]"))
    prompts = ["b"] * len(COMPLETIONS)
    alone = [scores(prompts=["b"], completions=[completion], completion_ids=[[1]])[0] for completion in COMPLETIONS]
    for batch_size in (1, 3, 8):
        batched = RewardModel(random_classifier(kind), word_tokenizer(eos_token="[END]"), batch_size=batch_size)
        np.testing.assert_allclose(batched(prompts, COMPLETIONS), alone, atol=1e-5)
        np.testing.assert_allclose(batched(prompts, COMPLETIONS[::-1]), alone[::-1], atol=1e-5)
    assert np.ptp(alone) > 0.1


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
def test_the_score_is_the_models_own_logit(kind: str) -> None:
    """Prompt, a space, completion, through the model without padding; white space between them is kept as it is."""
    model, tokens = random_classifier(kind), word_tokenizer(eos_token="[END]")
    scores = RewardModel(model, tokens)
    expected = model(input_ids=torch.tensor([tokens("b a b c d")["input_ids"]])).logits.item()
    assert scores(["b a b"], ["c d"])[0] == pytest.approx(expected, abs=1e-5)
    assert scores(["b a b"], [" c d"])[0] == pytest.approx(expected, abs=1e-5)
    assert scores(["b a"], ["c d"])[0] != pytest.approx(expected, abs=1e-3)  # control: the prompt matters


def test_several_labels_give_log_odds() -> None:
    """log p(label) - log(1 - p(label)), by index or name; without a label the error lists them."""
    names = {0: "bad", 1: "fair", 2: "good"}
    model = random_classifier("gpt2", 3, id2label=names, label2id={name: i for i, name in names.items()})
    tokens = word_tokenizer(eos_token="[END]")
    probs = model(input_ids=torch.tensor([tokens("a b")["input_ids"]])).logits.softmax(dim=1)[0].detach()
    for label in (2, "good"):
        found = RewardModel(model, tokens, label=label)(["a"], ["b"])[0]
        assert found == pytest.approx(float(torch.logit(probs[2])), abs=1e-5)
    for wrong in (None, "best", 3):
        with pytest.raises(ValueError, match=r"labels \{0: 'bad'.*pass label="):
            RewardModel(model, tokens, label=wrong)


def test_normalisation_is_saved_with_the_model(tmp_path: Path) -> None:
    """`score_mean` and `score_std` are saved in the config; a path is enough to load them."""
    model, tokens = random_classifier("llama"), word_tokenizer(eos_token="[END]")
    plain = RewardModel(model, tokens)(["a"] * len(COMPLETIONS), COMPLETIONS)
    model.config.score_mean, model.config.score_std = 0.5, 2.0
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    loaded = RewardModel(tmp_path)(["a"] * len(COMPLETIONS), COMPLETIONS)
    np.testing.assert_allclose(loaded, (np.array(plain) - 0.5) / 2.0, atol=1e-5)


def test_long_sequences_are_cut_on_the_left() -> None:
    """The last words change the score, the first do not; the model's limit raises no error."""
    scores = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    long = "c d " * 6
    assert scores(["a a a"], [long]) == pytest.approx(scores(["b b b"], [long]))
    assert scores(["a a a"], ["c d"]) != pytest.approx(scores(["b b b"], ["c d"]))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_sequence_that_is_cut_keeps_its_special_tokens(kind: str) -> None:
    """BERT computes the score from its first token, which is [CLS] however long the sequence is."""
    special = word_tokenizer(eos_token="[END]", cls_token="[CLS]")
    special.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $0", special_tokens=[("[CLS]", special.cls_token_id)]
    )
    reward = RewardModel(random_classifier(kind, vocab_size=len(special)), special)
    long = reward.tokens("a a a", "c d " * 20)
    assert long[0] == special.cls_token_id and len(long) == reward.max_length
    assert long[1:] == special.encode("c d " * 20, add_special_tokens=False)[-len(long) + 1 :]
    assert reward.tokens("a", "b") == [special.cls_token_id, *special.encode("a b", add_special_tokens=False)]


class SpyTokenizer:
    """Records its inputs."""

    chat_template: str | None = None

    def __init__(self, inputs: list[str]) -> None:
        self.inputs = inputs

    def encode(self, text: str, add_special_tokens: bool, **limits: Any) -> list[int]:
        """Tokenises a string."""
        self.inputs.append(text if add_special_tokens else f"{text} (no special tokens)")
        return [0]

    def apply_chat_template(self, messages: Any, tokenize: bool) -> str:
        """A conversation as one string."""
        assert not tokenize
        return "|".join(f"{message['role']}: {message['content']}" for message in messages)


def test_prompt_and_completion_are_joined_by_at_most_one_space() -> None:
    """A space where a word begins; none before punctuation or after white space, nor where there is one already."""
    reward = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    inputs: list[str] = []
    spy = reward.tokenizer = SpyTokenizer(inputs)
    cases = {
        ("a", "b"): "a b",
        ("a", " b"): "a b",
        ("a", ", b"): "a, b",
        ("a", "(b"): "a (b",
        ("a", "'re"): "a're",
        ("a\n", "b"): "a\nb",
        ("a", ""): "a",
    }
    for prompt, completion in cases:
        reward.tokens(prompt, completion)
    assert inputs == list(cases.values())
    # conversations: the classifier's own template, else the contents alone, never another model's markers
    messages = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    inputs.clear()
    for prompt in (messages, ConversationText("<rendered by the policy>", messages)):
        for completion in ("c", [{"role": "assistant", "content": "c"}]):
            spy.chat_template = None
            reward.tokens(prompt, completion)
            spy.chat_template = "own"
            reward.tokens(prompt, completion)
    assert inputs == ["a\nb\nc", "assistant: a|user: b|assistant: c (no special tokens)"] * 4
    inputs.clear()
    reward.tokens([*messages, {"role": "assistant", "content": "c"}], "d")  # the completion continues a turn
    assert inputs == ["assistant: a|user: b|assistant: cd (no special tokens)"]


def test_a_label_or_a_tokenizer_that_does_not_fit_is_refused() -> None:
    """A wrong label is refused by a model with one label too; the name of that label is accepted."""
    own = word_tokenizer(eos_token="[END]")
    with pytest.raises(ValueError, match="has the labels .*got 'nonsense'"):
        RewardModel(random_classifier("gpt2"), own, label="nonsense")
    assert RewardModel(random_classifier("gpt2"), own, label="LABEL_0").label is None
    with pytest.raises(ValueError, match="The classifier has a vocabulary of 4 tokens, the tokenizer one of 9"):
        RewardModel(random_classifier("gpt2", vocab_size=4), own)


def test_a_classifier_without_trained_head_is_refused(tmp_path: Path) -> None:
    """transformers would give a language model without a score head a random one."""
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path)
    for label in (None, "LABEL_1"):
        with pytest.raises(ValueError, match=r"is not a complete classifier: score.weight is missing.*reward-model"):
            RewardModel(tmp_path, label=label)


def test_its_scores_are_those_of_a_rollout() -> None:
    """`collect` gives each completion the model's score; the model is not trained."""
    model = random_classifier("bert")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    reward = RewardModel(model, word_tokenizer(eos_token="[END]"))
    env = gym.make("textenv/Text-v0", **words(prompts=PROMPTS, reward=reward))
    rollout = collect(env, random_policy(env), 32, generator=new_generator("cpu", 0))
    expected = reward(rollout.prompts.tolist(), rollout.completions.tolist())
    np.testing.assert_allclose(rollout.scores.numpy(), expected, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_bad_models_are_refused() -> None:
    """No tokenizer, no token to pad with."""
    with pytest.raises(ValueError, match="needs the classifier's tokenizer"):
        RewardModel(random_classifier("gpt2"))
    with pytest.raises(ValueError, match="neither a padding nor an end token"):
        RewardModel(random_classifier("gpt2"), word_tokenizer())


def test_a_tokenizer_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a loaded model and beside a path; `trust_remote_code` reaches it."""
    model, tokens = random_classifier("gpt2"), word_tokenizer(eos_token="[END]")
    tokens.save_pretrained(tmp_path / "tokenizer")
    model.save_pretrained(tmp_path / "model")
    expected = RewardModel(model, tokens)(["a"], ["b c"])
    for path in (tmp_path / "tokenizer", str(tmp_path / "tokenizer")):
        assert RewardModel(model, path)(["a"], ["b c"]) == expected
        assert RewardModel(tmp_path / "model", path)(["a"], ["b c"]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="There is nothing to load at '.*nowhere'"):
        RewardModel(model, str(tmp_path / "nowhere"))
    trusted: list[bool] = []

    def loads(path: Any, *, trust_remote_code: bool) -> Any:
        trusted.append(trust_remote_code)
        return tokens

    monkeypatch.setattr("textenv.rewards.classifier.load_tokenizer", loads)
    for trust in (False, True):
        RewardModel(model, "some/tokenizer", trust_remote_code=trust)
    assert trusted == [False, True]


@pytest.mark.parametrize("wrong", [WordTokenizer("a b"), 3, 0, ["a"], str.split, PreTrainedTokenizerFast])
def test_what_is_no_tokenizer_of_hugging_face_is_refused(wrong: Any) -> None:
    """Before a model is loaded; the error has what it lacks."""
    for model in (random_classifier("gpt2"), "/nowhere"):
        with pytest.raises(ValueError, match="needs the classifier's Hugging Face tokenizer.* got .*which has no "):
            RewardModel(model, wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1, got 0"),
        ({"batch_size": "8"}, "batch_size must be a whole number, at least 1, got '8'"),
        ({"batch_size": True}, "batch_size must be a whole number, at least 1, got True"),
        ({"batch_size": None}, "batch_size must be a whole number, at least 1, got None"),
        ({"batch_size": 1.5}, r"batch_size must be a whole number, at least 1, got 1\.5"),
        ({"joiner": None}, "joiner must be a string, got None"),
        ({"joiner": 3}, "joiner must be a string, got 3"),
        ({"label": True}, "label must be an integer, a string or None, got True"),
        ({"label": 1.0}, r"label must be an integer, a string or None, got 1\.0"),
        ({"label": [1]}, r"label must be an integer, a string or None, got \[1\]"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments: Any, message: str) -> None:
    """Also where the model cannot be loaded: they are checked before it."""
    tokens = word_tokenizer(eos_token="[END]")
    for model in (random_classifier("gpt2", num_labels=2), "/nowhere"):
        with pytest.raises(ValueError, match=message):
            RewardModel(model, tokens, **arguments)


def test_integers_of_numpy_are_integers() -> None:
    """As a label and as a batch size."""
    model, tokens = random_classifier("gpt2", num_labels=2), word_tokenizer(eos_token="[END]")
    reward = RewardModel(model, tokens, label=np.int64(1), batch_size=np.int64(2))
    expected = RewardModel(model, tokens, label=1)(["a"] * 3, ["b"] * 3)
    assert reward(["a"] * 3, ["b"] * 3) == pytest.approx(expected, abs=1e-5)


def test_there_is_one_completion_per_prompt() -> None:
    """The error has both numbers."""
    reward = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    for prompts, completions in ((["a"], ["b", "c"]), (["a", "b"], []), ([], ["a"])):
        found = f"got {len(prompts)} prompts and {len(completions)} completions"
        with pytest.raises(ValueError, match=f"takes one completion per prompt, {found}"):
            reward(prompts, completions)
    assert reward([], []) == []


def test_a_sequence_without_a_token_is_refused() -> None:
    """Alone, and beside others, where padding would hide it."""
    reward = RewardModel(random_classifier("gpt2"), word_tokenizer(eos_token="[END]"))
    for prompts, completions in (([""], [""]), (["a", ""], ["b", " "])):
        with pytest.raises(ValueError, match="at least one token, got none from the prompt '' and the completion ' ?'"):
            reward(prompts, completions)
    reward.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="at least one token, got none from the prompt .*user"):
        reward([[{"role": "user", "content": ""}]], [""])
    assert reward(["a"], [""]) != reward(["b"], [""])


def test_special_tokens_in_prompts_and_completions_are_text() -> None:
    """The classifier's own special tokens come from its tokenizer and template alone, never from a text."""
    tokenizer = byte_level()
    reward = RewardModel(random_classifier("gpt2", vocab_size=len(tokenizer)), tokenizer)
    reward.max_length = None
    end = tokenizer.convert_tokens_to_ids("</s>")
    plain, typed = reward.tokens("hello", "world"), reward.tokens("hello </s>", "</s> world")
    assert plain == tokenizer.encode("hello world") and end not in typed and typed.count(tokenizer.bos_token_id) == 1
    assert end in tokenizer.encode("hello </s> </s> world")  # by default the tokenizer reads it
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    messages = [{"role": "user", "content": "hello </s>"}]
    assert reward.tokens(messages, "</s>").count(end) == 2
    reward.max_length = 5
    ordinary = tokenizer.encode("hello </s> world", add_special_tokens=False, split_special_tokens=True)
    assert reward.tokens("hello </s>", "world") == [tokenizer.bos_token_id, *ordinary[-4:]]


@pytest.mark.parametrize(("name", "value"), [("score_std", 0.0), ("score_std", -1.0), ("score_mean", float("nan"))])
def test_a_normalization_that_is_no_number_is_refused(name: str, value: float) -> None:
    """It comes from a file: the scores would not be finite."""
    model = random_classifier("gpt2")
    RewardModel(model, word_tokenizer(eos_token="[END]"))
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match=f"{name} must be a finite number"):
        RewardModel(model, word_tokenizer(eos_token="[END]"))
    setattr(model.config, name, "os")
    with pytest.raises(ValueError, match=f"{name} must be a finite number.*got 'os'"):
        RewardModel(model, word_tokenizer(eos_token="[END]"))


@pytest.mark.parametrize("value", [0, -7, "12", [12]])
@pytest.mark.parametrize("name", ["max_position_embeddings", "model_max_length"])
def test_a_limit_that_is_no_number_of_tokens_is_refused(name: str, value: Any) -> None:
    """By its name: one is the model's, the other the tokenizer's. Control: 12 tokens."""
    for limit in (12, value):
        model, tokenizer = random_classifier("bert"), word_tokenizer(pad_token="[END]", eos_token="[END]")
        vars(model.config if name == "max_position_embeddings" else tokenizer)[name] = limit  # unchecked, as in a file
        if limit == 12:
            assert RewardModel(model, tokenizer).max_length == 12
            continue
        with pytest.raises(ValueError, match=f"^The classifier's {name} must be a number of tokens, got "):
            RewardModel(model, tokenizer)


def test_the_package_imports_it_on_first_use() -> None:
    """By its name, and no other."""
    assert textenv.rewards.__getattr__("RewardModel") is RewardModel
    with pytest.raises(AttributeError, match="has no attribute 'REWARDMODEL'"):
        textenv.rewards.__getattr__("REWARDMODEL")
