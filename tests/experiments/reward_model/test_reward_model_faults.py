"""A fault at each file operation of `reward-model`: the disk is full, or the process is killed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from agents import files
from tests.helpers import faults
from tests.helpers.classifiers import random_classifier, word_tokenizer, write_pairs
from tests.helpers.faults import Fault

FLAGS = "reward-model --batch-size 16 --learning-rate 0.05 --held-out 0.3 --checkpoint-seconds 0 --out out".split()  # noqa: SIM905


class Whole(NamedTuple):
    """A training without a fault."""

    arguments: list[str]
    operations: list[faults.Operation]
    outputs: dict[str, bytes]


def outputs(folder: Path) -> dict[str, bytes]:
    """The files of a trained reward model."""
    return {name: (folder / name).read_bytes() for name in files.verify(folder)["files"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Two minibatches, each with a checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    random_classifier("gpt2", resid_pdrop=0.2).save_pretrained(folder / "start")
    word_tokenizer(eos_token="[END]").save_pretrained(folder / "start")
    pairs = write_pairs(folder / "pairs.jsonl", 40)
    arguments = [*FLAGS, "--resume", "--pairs", str(pairs), "--model", str(folder / "start")]
    ended = faults.run(arguments, folder)
    assert ended.code == 0, ended.output
    return Whole(arguments, ended.operations, outputs(folder / "out"))


def check(fault: Fault, whole: Whole, folder: Path) -> None:
    """The fault ends the training with an error of ours, or at once; resumed, the model is that of a whole one."""
    interrupted = faults.run(whole.arguments, folder, fault)
    where = f"{fault} ({whole.operations[fault.at]}): {interrupted.output}"
    if fault.kind.startswith("kill"):
        assert interrupted.code == -9, where
    elif "lock.json" not in whole.operations[fault.at].path:  # one that cannot be removed is that of an ended process
        assert interrupted.code == 1 and "Traceback" not in interrupted.output, where
        assert "error: Could not" in interrupted.output and "No space left on device" in interrupted.output, where
    resumed = faults.run(whole.arguments, folder)
    assert resumed.code == 0, f"{where} {resumed.output}"
    assert outputs(folder / "out") == whole.outputs, where
    left = {path.name for path in (folder / "out").iterdir()}
    assert left == {*whole.outputs, "manifest.json", "training.json"}, where


def test_some_faults(whole: Whole, tmp_path: Path) -> None:
    """Every tenth operation, the kinds in turn."""
    assert len(whole.operations) > 60
    for number, at in enumerate(range(0, len(whole.operations), 10)):
        check(Fault(at, faults.KINDS[number % 4]), whole, tmp_path / str(at))


@pytest.mark.slow
def test_a_fault_at_every_operation(whole: Whole, tmp_path: Path) -> None:
    """The disk is full, or the process is killed, before an operation or in the middle of a write."""
    for fault in faults.one_at_each(whole.operations):
        check(fault, whole, tmp_path / str(fault.at))
