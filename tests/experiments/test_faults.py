"""A run that is interrupted at any file operation, and resumed, equals one that was not interrupted."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers import faults
from tests.helpers.faults import Fault, Operation
from tests.helpers.toy_run import TRAIN, fit_nothing

PARTS = 4  # of all faults, so that several processes can test them


class Whole(NamedTuple):
    """A run that was not interrupted: its folder, its operations, and what it left."""

    folder: Path
    operations: list[Operation]
    state: dict[str, Any]


def train(folder: Path, fault: Fault | None = None) -> faults.Ended:
    """Trains three updates, each with a checkpoint, in `folder / "run"`."""
    return faults.run(TRAIN, folder, fault, fit_nothing)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run without a fault."""
    folder = tmp_path_factory.mktemp("whole")
    ended = train(folder)
    assert ended.code == 0, ended.output
    return Whole(folder, ended.operations, faults.final_state(folder / "run"))


def check(fault: Fault, whole: Whole, folder: Path) -> None:
    """The fault ends the run with an error of ours, or at once; resumed, it leaves what a whole run leaves."""
    interrupted = train(folder, fault)
    where = f"{fault} ({whole.operations[fault.at]})"
    if fault.kind.startswith("kill"):
        assert interrupted.code == -9, where
    elif "lock.json" not in whole.operations[fault.at].path:  # one that cannot be removed is that of an ended process
        assert interrupted.code == 1, f"{where}: {interrupted.output}"
        assert "Traceback" not in interrupted.output, f"{where}: {interrupted.output}"
        assert re.search(r"error: Could not \w+.*: No space left on device", interrupted.output), where
    resumed = train(folder)
    assert resumed.code == 0, f"{where}: {resumed.output}"
    assert faults.differences(faults.final_state(folder / "run"), whole.state) == [], where
    shutil.rmtree(folder)


def test_two_runs_are_equal_and_a_lost_update_is_seen(whole: Whole, tmp_path: Path) -> None:
    """Control: without a fault the states are equal; with another seed everything that was trained differs."""
    assert len(whole.operations) > 80 and len(whole.state) > 20
    assert train(tmp_path).code == 0
    assert faults.differences(faults.final_state(tmp_path / "run"), whole.state) == []
    other = faults.run([*TRAIN, "--seed", "1"], tmp_path / "other", before=fit_nothing)
    assert other.code == 0
    changed = faults.differences(faults.final_state(tmp_path / "other" / "run"), whole.state)
    assert {"checkpoint/model.safetensors", "checkpoint/training_state.safetensors", "metrics.jsonl"} <= set(changed)


def test_a_run_that_is_not_resumed_is_seen(whole: Whole, tmp_path: Path) -> None:
    """Control: the state of a run that was killed differs."""
    killed = train(tmp_path, Fault(len(whole.operations) // 2, "kill"))
    assert killed.code == -9
    assert faults.differences(faults.final_state(tmp_path / "run"), whole.state) != []


@pytest.mark.parametrize("part", range(6))
def test_some_faults(part: int, whole: Whole, tmp_path: Path) -> None:
    """One of each kind, spread over the run."""
    chosen = list(faults.faults_of(whole.operations))
    fault = chosen[(2 * part + 1) * len(chosen) // 12][1]
    check(fault, whole, tmp_path / "run")


@pytest.mark.parametrize("size", [3_500, 20_000, 100_000])
def test_a_real_limit(size: int, whole: Whole, tmp_path: Path) -> None:
    """The system refuses to write files larger than some bytes: an error of ours, at whichever file it happens."""
    resource = pytest.importorskip("resource")
    largest = max(path.stat().st_size for path in (whole.folder / "run").rglob("*") if path.is_file())
    assert largest > size

    def limit() -> None:
        fit_nothing()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    limited = faults.run(TRAIN, tmp_path, before=limit)
    assert limited.code == 1 and "Traceback" not in limited.output, limited.output
    assert re.search(r"error: Could not write .*File too large", limited.output), limited.output
    assert train(tmp_path).code == 0
    assert faults.differences(faults.final_state(tmp_path / "run"), whole.state) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_fault_at_every_operation(part: int, whole: Whole, tmp_path: Path) -> None:
    """The disk is full, or the process is killed, before an operation or in the middle of a write."""
    chosen = list(faults.one_at_each(whole.operations))[part::PARTS]
    assert len(chosen) > 30 and {fault.kind for fault in chosen} == set(faults.KINDS)
    for fault in chosen:
        check(fault, whole, tmp_path / f"{fault.at}-{fault.kind}")
