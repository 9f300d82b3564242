"""A sequence classifier as reward: the same score in any company, from any kind of model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from agents.sampling import collect, new_generator
from experiments.errors import FlagError
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.reward_model.pairs import Pair, read_pairs, split
from experiments.reward_model.training import agreement, margins, preference_loss
from tests.helpers.commands import SHAPES, classifier, tokenizer
from tests.helpers.policies import random_policy
from tests.helpers.tasks import PROMPTS, words
from textenv.rewards import RewardModel

TEXTS = ["a", "b a", "a b c d", "d", "c c c", "b d a c b", "a a", "d c"]


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


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_text_that_is_cut_keeps_its_special_tokens(kind: str) -> None:
    """BERT's kind reads the score off the first token, which is [CLS] however long the text."""
    special = tokenizer(eos_token="[END]", cls_token="[CLS]")
    special.backend_tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $0", special_tokens=[("[CLS]", special.cls_token_id)]
    )
    reward = RewardModel(classifier(kind, vocab_size=len(special)), special)
    long = reward.tokens("a a a", "c d " * 20)
    assert long[0] == special.cls_token_id and len(long) == reward.max_length
    assert long[1:] == special.encode("c d " * 20, add_special_tokens=False)[-len(long) + 1 :]
    assert reward.tokens("a", "b") == [special.cls_token_id, *special.encode("a b", add_special_tokens=False)]


def test_prompt_and_answer_are_joined_as_they_were_written() -> None:
    """A space where a word begins; none in front of punctuation or after white space, and none where it is there."""
    reward = RewardModel(classifier("gpt2"), tokenizer(eos_token="[END]"))
    seen: list[str] = []
    spy = reward.tokenizer = SpyTokenizer(seen)
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
    assert seen == list(cases.values())
    # conversations: the classifier's own template, else the contents alone, never another model's markers
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    seen.clear()
    reward.tokens("<rendered by the policy>", "c", messages)
    spy.chat_template = "own"
    reward.tokens("<rendered by the policy>", "c", messages)
    assert seen == ["a\nb\nc", "user: a|assistant: b|assistant: c (no special tokens)"]


class SpyTokenizer:
    """Remembers what it was asked."""

    chat_template: str | None = None

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __call__(self, text: str, add_special_tokens: bool, **limits: Any) -> dict[str, list[int]]:
        """A text as ids."""
        self.seen.append(text if add_special_tokens else f"{text} (no special tokens)")
        return {"input_ids": [0]}

    def apply_chat_template(self, messages: Any, tokenize: bool) -> str:
        """A conversation as text."""
        assert not tokenize
        return "|".join(f"{message['role']}: {message['content']}" for message in messages)


def test_a_label_or_a_tokenizer_that_does_not_fit_is_refused() -> None:
    """Also where there is one label alone; its own name will do."""
    own = tokenizer(eos_token="[END]")
    with pytest.raises(ValueError, match="has the labels .*got 'nonsense'"):
        RewardModel(classifier("gpt2"), own, label="nonsense")
    assert RewardModel(classifier("gpt2"), own, label="LABEL_0").label is None
    with pytest.raises(ValueError, match="The classifier has a vocabulary of 4 tokens, the tokenizer one of 9"):
        RewardModel(classifier("gpt2", vocab_size=4), own)


def test_a_classifier_that_was_never_trained_is_no_reward(tmp_path: Path) -> None:
    """Of a language model without a head of scores transformers would make one of random numbers."""
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    tokenizer(eos_token="[END]").save_pretrained(tmp_path)
    for label in (None, "LABEL_1"):
        with pytest.raises(ValueError, match=r"holds no whole classifier: score.weight is missing.*reward-model"):
            RewardModel(tmp_path, label=label)


def test_all_pairs_of_a_prompt_are_on_one_side() -> None:
    """What is held out was not seen with another answer either; with one prompt alone, pairs are drawn."""
    pairs = [Pair(f"p{i % 10}", "a", f"b{i}") for i in range(100)]
    train, test = split(pairs, 0.2, np.random.default_rng(0))
    assert len(test) == 20 and sorted(train + test) == sorted(pairs)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in test}
    train, test = split([pair._replace(prompt="p") for pair in pairs], 0.2, np.random.default_rng(0))
    assert len(test) == 20 and len(train) == 80


def test_a_classifier_with_several_labels_can_be_trained_on_pairs(tmp_path: Path) -> None:
    """Its layer of labels is replaced by one with one; the global generator is left alone."""
    start = tmp_path / "start"
    classifier("gpt2", num_labels=3).save_pretrained(start)
    tokenizer(eos_token="[END]").save_pretrained(start)
    before = torch.get_rng_state()
    reward_model(RewardModelConfig(write_pairs(tmp_path / "pairs.jsonl", 20), str(start), tmp_path / "out"))
    assert torch.equal(torch.get_rng_state(), before)
    assert RewardModel(tmp_path / "out").label is None


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


def write_pairs(path: Path, count: int = 120, flip: bool = False) -> Path:
    """People prefer the answer with more a's."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for _ in range(count):
            good, bad = (" ".join(rng.choice(list(words), 3)) for words in ("aaab", "cdef"))
            chosen, rejected = (bad, good) if flip else (good, bad)
            file.write(json.dumps({"prompt": "g h", "chosen": chosen, "rejected": rejected}) + "\n")
    return path


def start(folder: Path, kind: str = "gpt2") -> Path:
    """A classifier and its tokenizer to start from."""
    classifier(kind).save_pretrained(folder)
    tokenizer(eos_token="[END]").save_pretrained(folder)
    return folder


def trained(tmp_path: Path, name: str, **flags: Any) -> tuple[dict[str, float], Path]:
    """What was measured, and where the model is."""
    pairs = write_pairs(tmp_path / f"{name}.jsonl", flip=flags.pop("flip", False))
    model = start(tmp_path / f"{name}-start", flags.pop("kind", "gpt2"))
    out = tmp_path / name
    defaults: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "held_out": 0.2}
    return reward_model(RewardModelConfig(pairs, str(model), out, **(defaults | flags))), out


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_it_learns_what_people_prefer(kind: str, tmp_path: Path) -> None:
    """On pairs never seen it agrees nearly always; trained on the opposite it learns the opposite."""
    measured, out = trained(tmp_path, "likes", kind=kind)
    assert measured["accuracy"] > 0.95 and measured["log_loss"] < 0.2 and measured["pairs"] == 24
    scores = RewardModel(out)
    good, bad = scores(["g h"] * 2, ["a a b", "d e f"])
    assert good > bad + 1
    _, opposite = trained(tmp_path, "dislikes", kind=kind, flip=True)
    good, bad = RewardModel(opposite)(["g h"] * 2, ["a a b", "d e f"])
    assert good < bad - 1
    assert json.loads((out / "held_out.json").read_text()) == measured


def test_it_learns_in_bfloat16_too(tmp_path: Path) -> None:
    """Through float32 copies of the weights; what is saved is in bfloat16."""
    measured, out = trained(tmp_path, "half", dtype="bfloat16")
    assert measured["accuracy"] > 0.95
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_scores_are_normalised_over_the_training_answers(tmp_path: Path) -> None:
    """Mean 0 and standard deviation 1, of the training part exactly; the raw logits are something else."""
    _, out = trained(tmp_path, "model")
    pairs = read_pairs(tmp_path / "model.jsonl")
    scores = RewardModel(out)
    found = np.array(scores(["g h"] * 240, [p.chosen for p in pairs] + [p.rejected for p in pairs]))
    assert abs(found.mean()) < 0.1 and abs(found.std() - 1) < 0.1
    mean, std = scores.model.config.score_mean, scores.model.config.score_std
    scores.model.config.score_mean, scores.model.config.score_std = 0.0, 1.0
    raw = np.array(scores(["g h"] * 240, [p.chosen for p in pairs] + [p.rejected for p in pairs]))
    assert abs(raw.std() - 1) > 0.2  # control
    train = np.random.default_rng(0).permutation(120)[24:]
    answers = raw.reshape(2, 120)[:, train]
    assert (mean, std) == (pytest.approx(answers.mean(), abs=1e-4), pytest.approx(answers.std(), abs=1e-4))
    assert mean != pytest.approx(raw.mean(), abs=1e-6)


def test_a_reward_model_can_start_from_another(tmp_path: Path) -> None:
    """What normalised the first one's scores is forgotten: the second's have mean 0 and standard deviation 1 again."""
    _, first = trained(tmp_path, "first")
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    reward_model(RewardModelConfig(pairs, str(first), tmp_path / "second", learning_rate=1e-2, held_out=0.01))
    answers = [answer for pair in read_pairs(pairs) for answer in (pair.chosen, pair.rejected)]
    scores = np.array(RewardModel(tmp_path / "second")(["g h"] * len(answers), answers))
    assert abs(scores.mean()) < 0.05 and abs(scores.std() - 1) < 0.05
    normalised = RewardModel(first).model.config  # control: forgetting matters
    assert abs(normalised.score_std - 1) > 0.2


def test_held_out_pairs_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other pair is, once an epoch; those held out are what is measured."""
    seen: dict[bool, list[str]] = {True: [], False: []}

    def spy(reward: RewardModel, pairs: list[Pair]) -> torch.Tensor:
        seen[torch.is_grad_enabled()] += [pair.prompt for pair in pairs]
        return margins(reward, pairs)

    monkeypatch.setattr("experiments.reward_model.training.margins", spy)
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b c"} for i in range(50)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = RewardModelConfig(path, str(start(tmp_path / "start")), tmp_path / "out", epochs=2, held_out=0.2)
    assert reward_model(config)["pairs"] == 10 == len(set(seen[False])) == len(seen[False])
    assert sorted(seen[True]) == sorted([row["prompt"] for row in rows if row["prompt"] not in seen[False]] * 2)


def test_margins_and_the_loss_are_bradley_terrys() -> None:
    """Differences of scores, pair by pair; the loss is -log of the probability that both are ordered right."""
    reward = RewardModel(classifier("llama"), tokenizer(eos_token="[END]"))
    pairs = [Pair("g", "a b", "c"), Pair("h h", "d", "a a a")]
    with torch.no_grad():
        found = margins(reward, pairs)
    scores = [reward([p.prompt] * 2, [p.chosen, p.rejected]) for p in pairs]
    np.testing.assert_allclose(found.numpy(), [good - bad for good, bad in scores], atol=1e-5)
    probability = 1 / (1 + torch.exp(-found))
    assert preference_loss(found).item() == pytest.approx(-probability.log().mean().item(), abs=1e-6)


def test_agreement_by_hand() -> None:
    """Accuracy, log loss and calibration of four pairs; a model that says 50:50 is calibrated and knows nothing."""
    nothing = agreement(np.zeros(10))
    assert (nothing["accuracy"], nothing["calibration_error"]) == (0.5, 0.0)
    assert nothing["log_loss"] == pytest.approx(np.log(2))
    margin = np.log([3.0, 3.0, 3.0, 1 / 3.0])  # confidence 0.75 each time, right three times of four: calibrated
    fair = agreement(margin)
    assert fair["accuracy"] == 0.75 and fair["mean_confidence"] == pytest.approx(0.75)
    assert fair["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    sure = agreement(10 * margin)
    assert sure["accuracy"] == 0.75 and sure["calibration_error"] == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", ":2: not valid JSON"),
        ('{"prompt": "a", "chosen": "b"}', ":2: must be an object .* no 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}', ":2: must be an object .* 'rejected' is 3"),
        ('{"prompt": "a", "chosen": "b", "rejected": "\\ud800"}', ":2: not valid JSON .*surrogates not allowed"),
        ('{"prompt": "a", "chosen": "b ", "rejected": " b"}', ":2: chosen and rejected are the same, 'b '"),
        ("[" * 100_000, ":2: not valid JSON"),
        ('["a", "b"]', ":2: must be an object"),
        ('{"prompt": "a", "chosen": " ", "rejected": "c"}', ":2: the answer 'chosen' is empty"),
        ('{"prompt": "a", "chosen": "c", "rejected": "c"}', ":2: chosen and rejected are the same, 'c'"),
    ],
)
def test_a_bad_pairs_file_is_refused_before_anything_is_loaded(line: str, message: str, tmp_path: Path) -> None:
    """With file and line; no folder is left."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + line + "\n")
    with pytest.raises(FlagError, match=f"pairs.jsonl{message}"):
        reward_model(RewardModelConfig(path, "/nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_line_ends_where_json_says(tmp_path: Path) -> None:
    """Other line separators of Unicode may stand in a text."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('\ufeff{"prompt": "a", "chosen": "b\u2028c", "rejected": "c"}\n', encoding="utf-8")
    assert read_pairs(path) == [Pair("a", "b\u2028c", "c")]


@pytest.mark.parametrize("splits", [False, True])
def test_a_datasets_folder_holds_the_same_pairs(splits: bool, tmp_path: Path) -> None:
    """What `save_to_disk` wrote, with splits or without; a bad row is named; another folder is refused."""
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in write_pairs(tmp_path / "pairs.jsonl", 8).open()]

    def saved(name: str, rows: list[Any]) -> Path:
        data = datasets.Dataset.from_list(rows)
        (datasets.DatasetDict(train=data) if splits else data).save_to_disk(tmp_path / name)
        return tmp_path / name

    assert read_pairs(saved("good", rows)) == read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(FlagError, match="row 8: the answer 'rejected' is empty"):
        read_pairs(saved("bad", [*rows, {"prompt": "a", "chosen": "b", "rejected": ""}]))
    with pytest.raises(FlagError, match="is no folder that datasets' save_to_disk wrote"):
        read_pairs(tmp_path)
    datasets.DatasetDict(test=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / "test")
    with pytest.raises(FlagError, match="no split 'train', only test"):
        read_pairs(tmp_path / "test")


def test_other_bad_flags_are_refused(tmp_path: Path) -> None:
    """No file, no pair, too few pairs, a share that leaves nothing, a folder in use, a model that is not there."""
    good = write_pairs(tmp_path / "pairs.jsonl", 4)
    (tmp_path / "empty.jsonl").write_text("\n")
    single = write_pairs(tmp_path / "single.jsonl", 1)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pairs": tmp_path / "no.jsonl"}, "does not exist"),
        ({"pairs": tmp_path / "empty.jsonl"}, "holds no pair"),
        ({"pairs": single}, "too few"),
        ({"held_out": 1.0}, "--held-out"),
        ({"out": tmp_path}, "not empty"),
        ({"model": str(tmp_path / "nowhere")}, "--model"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a number > 0"),
        ({"seed": -1}, "--seed not negative"),
        ({"device": "nowhere"}, "--device nowhere"),
        ({"out": good, "model": str(start(tmp_path / "start"))}, "cannot be made"),
    ]
    for flags, message in cases:
        arguments: dict[str, Any] = {"pairs": good, "model": "/nowhere", "out": tmp_path / "out"}
        with pytest.raises(FlagError, match=message):
            reward_model(RewardModelConfig(**(arguments | flags)))
    assert not (tmp_path / "out").exists()
