"""`make gpu`: what it does with a device is tried on tests that need none; without one it says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import gpu

TESTS = """
import pytest

@pytest.mark.gpu
def test_right(): pass

@pytest.mark.gpu
def test_wrong(): assert False

@pytest.mark.gpu
@pytest.mark.skip
def test_left_out(): pass

def test_of_a_cpu(): pass
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_device_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and nothing is written."""
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: there is no CUDA device: nothing was run."]
    assert not (tmp_path / "out").exists()


def test_the_outcome_of_each_marked_test_is_kept(tmp_path: Path) -> None:
    """Passed, failed and skipped ones; those without the mark are not run. Control: with none that fails it passes."""
    path = tmp_path / "test_some.py"
    path.write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a device\n", encoding="utf-8")
    found = gpu.examine(tests=[str(path)])
    assert found["ended"] == "failed"
    each = {name.split("::")[1]: outcome for name, outcome in dict(found["tests"]).items()}  # type: ignore[call-overload]
    assert each == {"test_right": "passed", "test_wrong": "failure", "test_left_out": "skipped"}
    path.write_text(TESTS.replace("assert False", "pass"), encoding="utf-8")
    assert gpu.examine(tests=[str(path)])["ended"] == "passed"


def test_a_part_that_takes_too_long_is_ended() -> None:
    """Its time is part of what is kept; one that fails is told apart."""
    assert gpu.run(["timeit", "-n", "1", "-r", "1", "while True: pass"], 1) == "took longer than 1 seconds"
    assert gpu.run(["no_such_module"], 60) == "failed"
