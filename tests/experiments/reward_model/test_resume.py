"""Reward models: resuming, and training that fails."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import Diverged, files
from experiments.errors import FlagError, NotLearned, Stopped
from experiments.reward_model import RewardModelConfig, fitting, reward_model
from experiments.reward_model.fitting import Fit
from experiments.reward_model.pairs import Pair
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from textenv.rewards import RewardModel


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, Any]:
    """Flags of a training of 12 minibatches, with dropout, of a classifier that starts from random weights."""
    random_classifier("gpt2", resid_pdrop=0.2).save_pretrained(tmp_path / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(tmp_path / "start")
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    return {"pairs": pairs, "model": str(tmp_path / "start"), "epochs": 3, "learning_rate": 1e-2, "held_out": 0.2}


def train(flags: dict[str, Any], out: Path, **more: Any) -> dict[str, float]:
    """Runs the command."""
    return reward_model(RewardModelConfig(**flags, out=out, **more))


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of a trained reward model, all that its manifest lists, and no other."""
    names = set(files.verify(folder)["files"])
    assert {path.name for path in folder.iterdir()} == {*names, "manifest.json", "training.json"}
    return {name: (folder / name).read_bytes() for name in names}


def at_batch(number: int, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Performs an action within the step of a minibatch, after its forward pass."""
    loss, calls = fitting.preference_loss, 0

    def counted(margin: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return loss(margin)

    monkeypatch.setattr(fitting, "preference_loss", counted)


def fail() -> None:
    """An error that nobody expects."""
    raise RuntimeError("the power is off")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3, 4, 5, 9])  # of 3 in an epoch
def test_an_interrupted_training_resumes_bit_for_bit(
    batch: int, dtype: str, flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a checkpoint after each minibatch, wherever it stops: weights and metrics equal those without a stop."""
    flags |= {"checkpoint_seconds": 0.0, "dtype": dtype}
    measured = train(flags, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power") as error:
        at_batch(batch, fail, patch)
        train(flags, tmp_path / "stopped")
    assert "--resume" in error.value.__notes__[0] if batch > 1 else not (tmp_path / "stopped").exists()
    assert train(flags, tmp_path / "stopped", resume=True) == measured
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")
    assert {"model.safetensors", "held_out.json"} <= set(outputs(tmp_path / "whole"))


def test_a_lost_step_would_be_seen(flags: dict[str, Any], tmp_path: Path) -> None:
    """Control: one epoch fewer gives other weights."""
    train(flags, tmp_path / "whole")
    train(flags | {"epochs": 2}, tmp_path / "shorter")
    found = [outputs(tmp_path / name)["model.safetensors"] for name in ("whole", "shorter")]
    assert found[0] != found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_minibatch(
    number: int, flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is written; resumed, it equals the uninterrupted training."""
    measured = train(flags, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        at_batch(5, lambda: os.kill(os.getpid(), number), patch)
        train(flags, tmp_path / "stopped")
    state = json.loads((tmp_path / "stopped" / "checkpoint" / "training_state.json").read_text())
    assert state["num_pairs"] == 5 * 32
    assert train(flags, tmp_path / "stopped", resume=True) == measured
    assert outputs(tmp_path / "stopped") == outputs(tmp_path / "whole")


def test_a_finished_training_is_printed_again(flags: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """With --resume: nothing is trained. A damaged file is found, and the model trained again."""
    measured = train(flags, tmp_path / "out", resume=True)
    before = outputs(tmp_path / "out")
    with monkeypatch.context() as patch:
        at_batch(1, fail, patch)
        assert train(flags, tmp_path / "out", resume=True) == measured
        weights = tmp_path / "out" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        with pytest.raises(RuntimeError, match="power"):
            train(flags, tmp_path / "out", resume=True)
    assert train(flags, tmp_path / "out", resume=True) == measured and outputs(tmp_path / "out") == before


def test_other_flags_and_pairs_are_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    """At resume; and without --resume a folder with a training."""
    train(flags, tmp_path / "out")
    with pytest.raises(FlagError, match="not empty: add --resume"):
        train(flags, tmp_path / "out")
    with pytest.raises(FlagError, match=r"epochs was 3 and is 4\."):
        train(flags | {"epochs": 4}, tmp_path / "out", resume=True)
    flags["pairs"].write_text(flags["pairs"].read_text() + flags["pairs"].read_text())
    with pytest.raises(FlagError, match=r"pairs\.jsonl has changed\."):
        train(flags, tmp_path / "out", resume=True)


def test_a_damaged_checkpoint_is_passed_over(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one before is read, and said; with none left the error names the file."""
    measured = train(flags, tmp_path / "whole")
    flags |= {"checkpoint_seconds": 0.0}
    out = tmp_path / "stopped"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        at_batch(6, fail, patch)
        train(flags, out)
    (out / "checkpoint" / "training_state.safetensors").write_bytes(b"")
    capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):  # stopped again: the whole one is the newest now
        at_batch(2, fail, patch)
        train(flags, out, resume=True)
    assert files.newest_whole(out / "checkpoint") == (out / "checkpoint", [])
    assert train(flags, out, resume=True) == measured
    assert "passed over a checkpoint" in capsys.readouterr().out
    assert outputs(out) == outputs(tmp_path / "whole")

    broken = tmp_path / "broken"
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        at_batch(2, fail, patch)
        train(flags, broken)
    (broken / "checkpoint" / "training_state.json").unlink()
    with pytest.raises(files.DamagedFile, match=r"training_state\.json"):
        train(flags, broken, resume=True)


def test_a_checkpoint_of_another_model_is_an_error(flags: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    """Put into the folder: a sentence, not an error of torch."""
    fits = []
    for kind in ("gpt2", "bert"):
        reward = RewardModel(random_classifier(kind), word_tokenizer(eos_token="[END]"))
        fits.append(Fit(reward, [Pair("g", "a", "b")], 1, 1, 1e-3, np.random.default_rng(0)))
    fits[0].save(tmp_path / "checkpoint")
    with pytest.raises(files.DamagedFile, match="holds no checkpoint of this model"):
        fits[1].load(tmp_path / "checkpoint")


def test_a_model_that_was_not_learned_can_be_trained_further(flags: dict[str, Any], tmp_path: Path) -> None:
    """As the error says: from its checkpoint, with more epochs. Without --accept-changes it is refused."""
    flags |= {"learning_rate": 1e-9, "epochs": 1}
    write_pairs(flags["pairs"], flip=True)  # about the others the start is right by accident
    with pytest.raises(NotLearned, match="no better than a guess.*Nothing was saved") as error:
        train(flags, tmp_path / "out")
    assert "--accept-changes, and for example more --epochs" in error.value.__notes__[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint", "training.json"}
    flags |= {"learning_rate": 1e-2, "epochs": 3}
    with pytest.raises(FlagError, match="epochs was 1 and is 3"):
        train(flags, tmp_path / "out", resume=True)
    assert train(flags, tmp_path / "out", resume=True, accept_changes=True)["p_value"] < 0.01
    assert (tmp_path / "out" / "held_out.json").is_file() and (tmp_path / "out" / "accepted_changes.jsonl").is_file()


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e12, 1e9])
def test_divergence_is_an_error(rate: float, flags: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is saved as a result; the error names what to lower."""
    with pytest.raises(Diverged, match="lower --learning-rate"):
        train(flags | {"learning_rate": rate, "epochs": 10}, tmp_path / "out")
    assert not (tmp_path / "out" / "held_out.json").exists() and not (tmp_path / "out" / "config.json").exists()


def test_a_step_that_is_not_finite_is_not_taken(
    flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than five in a row are skipped and counted; five stop the training with its weights as they were."""
    loss, calls = fitting.preference_loss, 0

    def sometimes(margin: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(margin) * (float("nan") if calls in bad else 1.0)

    monkeypatch.setattr(fitting, "preference_loss", sometimes)
    bad = {2, 4, 5}
    measured = train(flags, tmp_path / "some")
    assert measured["skipped_steps"] == 3 and measured["accuracy"] > 0.9
    calls, bad = 0, set(range(3, 99))
    with pytest.raises(
        Diverged, match=r"loss or gradient of 5 minibatches in a row are not finite.*begins with prompt"
    ):
        train(flags | {"checkpoint_seconds": 0.0}, tmp_path / "many")
    saved = files.read_tensors(tmp_path / "many" / "checkpoint" / "training_state.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values() if tensor.is_floating_point())
    assert not (tmp_path / "many" / "held_out.json").exists()


LONG = " ".join(["a"] * 20)


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Paris", "Rome", "may not know their words"),
        (f"b {LONG}", f"c {LONG}", "before the last 12 tokens"),
    ],
)
def test_pairs_that_look_alike_are_refused(
    chosen: str, rejected: str, reason: str, flags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of them: an error that names one, before training. Some of them: said, with their number."""
    pair = {"prompt": "hi", "chosen": chosen, "rejected": rejected}
    path = tmp_path / "alike.jsonl"
    flags["held_out"] = 0.4
    path.write_text("".join(json.dumps(pair | {"prompt": f"hi {i}"}) + "\n" for i in range(12)))
    with pytest.raises(NotLearned, match=rf"7 of 7 pairs to train on look alike to the model.*{reason}.*'hi \d+'"):
        train(flags | {"pairs": path}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    good = [line.replace("g h", str(i)) for i, line in enumerate(flags["pairs"].read_text().splitlines())]
    path.write_text(path.read_text() + "\n".join(good))
    train(flags | {"pairs": path}, tmp_path / "some")
    said = re.findall(r"(\d+) of (\d+) (pairs to train on|held-out pairs) look alike", capsys.readouterr().out)
    assert sum(int(alike) for alike, _, _ in said) == 12


def test_equal_scores_are_an_error(flags: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gives every completion the same score cannot be normalised."""

    def equal(self: RewardModel, rows: list[list[int]]) -> torch.Tensor:
        weight: torch.Tensor = self.model.score.weight
        return weight.sum() * torch.zeros(len(rows))

    monkeypatch.setattr(RewardModel, "logits", equal)
    with pytest.raises(Diverged, match="standard deviation 0"):
        train(flags, tmp_path / "out")
    assert not (tmp_path / "out" / "held_out.json").exists()
