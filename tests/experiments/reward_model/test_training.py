"""Reward models trained on preference pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import files
from agents.files import JsonObject
from experiments.errors import FlagError
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.reward_model.fitting import margins, preference_loss
from experiments.reward_model.pairs import Pair, read_pairs, split
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from textenv.rewards import RewardModel


def save_start(folder: Path, kind: str = "gpt2") -> Path:
    """Saves a classifier and its tokenizer to start from."""
    random_classifier(kind).save_pretrained(folder)
    word_tokenizer(eos_token="[END]").save_pretrained(folder)
    return folder


def train_model(tmp_path: Path, name: str, **flags: Any) -> tuple[JsonObject, Path]:
    """Trains a reward model; returns its held-out metrics and its folder."""
    pairs = write_pairs(tmp_path / f"{name}.jsonl", flip=flags.pop("flip", False))
    model = save_start(tmp_path / f"{name}-start", flags.pop("kind", "gpt2"))
    out = tmp_path / name
    defaults: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "held_out": 0.2}
    return reward_model(RewardModelConfig(pairs, str(model), out, **(defaults | flags))), out


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_it_learns_the_preferences(kind: str, tmp_path: Path) -> None:
    """It agrees with nearly all held-out pairs; trained on flipped pairs it prefers the opposite."""
    measured, out = train_model(tmp_path, "preferences", kind=kind)
    assert measured["accuracy"] > 0.95 and measured["log_loss"] < 0.2 and measured["pairs"] == 24
    scores = RewardModel(out)
    good, bad = scores(["g h"] * 2, ["a a b", "d e f"])
    assert good > bad + 1
    _, opposite = train_model(tmp_path, "flipped", kind=kind, flip=True)
    good, bad = RewardModel(opposite)(["g h"] * 2, ["a a b", "d e f"])
    assert good < bad - 1
    assert files.read_json(out / "held_out.json") == measured


def test_it_learns_in_bfloat16(tmp_path: Path) -> None:
    """By float32 master weights; the saved weights are in bfloat16."""
    measured, out = train_model(tmp_path, "half", dtype="bfloat16")
    assert measured["accuracy"] > 0.95
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_scores_are_normalised_over_the_training_completions(tmp_path: Path) -> None:
    """Mean 0 and standard deviation 1, exactly over the training pairs; the raw logits have others."""
    _, out = train_model(tmp_path, "model")
    pairs = read_pairs(tmp_path / "model.jsonl")
    scores = RewardModel(out)
    found = np.array(scores(["g h"] * 240, [p.chosen for p in pairs] + [p.rejected for p in pairs]))
    assert abs(found.mean()) < 0.1 and abs(found.std() - 1) < 0.1
    mean, std = scores.model.config.score_mean, scores.model.config.score_std
    scores.model.config.score_mean, scores.model.config.score_std = 0.0, 1.0
    raw = np.array(scores(["g h"] * 240, [p.chosen for p in pairs] + [p.rejected for p in pairs]))
    assert abs(raw.std() - 1) > 0.2  # control
    train, _ = split(pairs, 0.2, np.random.default_rng(0))
    logits = raw.reshape(2, 120)[:, [pairs.index(pair) for pair in train]]
    assert (mean, std) == (pytest.approx(logits.mean(), abs=1e-4), pytest.approx(logits.std(), abs=1e-4))
    assert mean != pytest.approx(raw.mean(), abs=1e-6)


def test_a_reward_model_can_start_from_another(tmp_path: Path) -> None:
    """The normalisation of the first is dropped: scores of the second have mean 0 and standard deviation 1 again."""
    _, first = train_model(tmp_path, "first")
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    reward_model(RewardModelConfig(pairs, str(first), tmp_path / "second", learning_rate=1e-2, held_out=0.05))
    completions = [completion for pair in read_pairs(pairs) for completion in (pair.chosen, pair.rejected)]
    scores = np.array(RewardModel(tmp_path / "second")(["g h"] * len(completions), completions))
    assert abs(scores.mean()) < 0.05 and abs(scores.std() - 1) < 0.05
    normalised = RewardModel(first).model.config  # control: keeping it would change the scores
    assert abs(normalised.score_std - 1) > 0.2


def test_held_out_pairs_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other pair is trained on, once per epoch; the held-out pairs are measured."""
    prompts: dict[bool, list[str]] = {True: [], False: []}

    def spy(reward: RewardModel, pairs: list[Pair]) -> torch.Tensor:
        prompts[torch.is_grad_enabled()] += [pair.prompt for pair in pairs]
        return margins(reward, pairs)

    for module in ("fitting", "measuring"):
        monkeypatch.setattr(f"experiments.reward_model.{module}.margins", spy)
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b c"} for i in range(50)]
    path.write_text("\n".join(map(json.dumps, rows)))
    config = RewardModelConfig(path, str(save_start(tmp_path / "start")), tmp_path / "out", epochs=2, held_out=0.2)
    config.learning_rate = 1e-2
    assert reward_model(config)["pairs"] == 10 == len(set(prompts[False])) == len(prompts[False])
    assert sorted(prompts[True]) == sorted([row["prompt"] for row in rows if row["prompt"] not in prompts[False]] * 2)


def test_margins_and_the_loss_are_bradley_terrys() -> None:
    """Margins are differences of scores; the loss is minus the mean log-probability of the preferences."""
    reward = RewardModel(random_classifier("llama"), word_tokenizer(eos_token="[END]"))
    pairs = [Pair("g", "a b", "c"), Pair("h h", "d", "a a a")]
    with torch.no_grad():
        found = margins(reward, pairs)
    scores = [reward([p.prompt] * 2, [p.chosen, p.rejected]) for p in pairs]
    np.testing.assert_allclose(found.numpy(), [good - bad for good, bad in scores], atol=1e-5)
    probability = 1 / (1 + torch.exp(-found))
    assert preference_loss(found).item() == pytest.approx(-probability.log().mean().item(), abs=1e-6)


def test_further_files_of_pairs_are_measured_each_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flipped pairs are wrong where the others are right; the model and what is held out are as without them."""
    sets = [write_pairs(tmp_path / "same.jsonl", 30), write_pairs(tmp_path / "flipped.jsonl", 30, flip=True)]
    measured, out = train_model(tmp_path, "several", eval_pairs=sets)
    alone, other = train_model(tmp_path, "alone")
    same, flipped = (measured["eval_pairs"][str(path)] for path in sets)
    assert same["accuracy"] > 0.95 and flipped["accuracy"] == pytest.approx(1 - same["accuracy"])
    assert flipped["p_value"] > 0.9 and same["pairs"] == 30
    assert {**measured, "eval_pairs": {}} == alone
    assert (out / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert files.read_json(out / "held_out.json") == measured
    printed = capsys.readouterr().out
    assert "same.jsonl: 30 different" not in printed and re.search(
        r"same\.jsonl: \d+ different pairs are trained on", printed
    )
    for name, begin in (("held-out pairs", ""), (sets[0], ""), (sets[1], "It is no better than a guess here.*")):
        assert re.search(rf"{name}: {begin}Calibration: its mean .* Length: both completions of every pair", printed)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    with pytest.raises(FlagError, match=r"bad\.jsonl:1: must be an object"):
        train_model(tmp_path, "bad-set", eval_pairs=[bad])
    with pytest.raises(FlagError, match="--eval-pairs: .*does not exist"):
        train_model(tmp_path, "no-set", eval_pairs=[tmp_path / "missing.jsonl"])


def test_a_reward_model_of_an_earlier_version_is_printed_again(tmp_path: Path) -> None:
    """What was not measured then is None."""
    measured, out = train_model(tmp_path, "earlier")
    known = {name: measured[name] for name in ("pairs", "accuracy", "log_loss", "calibration_error", "mean_confidence")}
    files.write_json(out / "held_out.json", known | {"skipped_steps": 0.0})
    manifest = files.read_json(out / "manifest.json")
    manifest["files"]["held_out.json"] = files.describe(out / "held_out.json")
    files.write_json(out / "manifest.json", manifest)
    again, _ = train_model(tmp_path, "earlier", resume=True)
    assert again == {**dict.fromkeys(measured), **known, "skipped_steps": 0.0, "eval_pairs": {}}


def test_a_classifier_with_several_labels_can_be_trained_on_pairs(tmp_path: Path) -> None:
    """Its output layer is replaced by one with a single label; the global generator is not changed."""
    start = tmp_path / "start"
    random_classifier("gpt2", num_labels=3).save_pretrained(start)
    word_tokenizer(eos_token="[END]").save_pretrained(start)
    before = torch.get_rng_state()
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    reward_model(RewardModelConfig(pairs, str(start), tmp_path / "out", learning_rate=1e-2))
    assert torch.equal(torch.get_rng_state(), before)
    assert RewardModel(tmp_path / "out").label is None


def test_other_bad_flags_are_refused(tmp_path: Path) -> None:
    """No file, no pair, a share of 1, a folder that is not empty, a missing model."""
    good = write_pairs(tmp_path / "pairs.jsonl", 60)
    (tmp_path / "empty.jsonl").write_text("\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"pairs": tmp_path / "no.jsonl"}, "does not exist"),
        ({"pairs": tmp_path / "empty.jsonl"}, "holds no pair"),
        ({"held_out": 1.0}, "--held-out"),
        ({"out": tmp_path}, "not empty"),
        ({"model": str(tmp_path / "nowhere")}, "--model"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a finite number"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"device": "nowhere"}, "--device nowhere"),
        ({"out": good, "model": str(save_start(tmp_path / "start"))}, "cannot be made"),
    ]
    for flags, message in cases:
        arguments: dict[str, Any] = {"pairs": good, "model": "/nowhere", "out": tmp_path / "out"}
        with pytest.raises(FlagError, match=message):
            reward_model(RewardModelConfig(**(arguments | flags)))
    assert not (tmp_path / "out").exists()
