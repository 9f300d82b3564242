"""Another package named `agents` is noticed before anything of it is imported."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.name_clash import agents_clash
from tests.helpers.paths import ROOT

FOREIGN = 'raise SystemExit("the other package was imported")\n'


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m experiments --help` in a folder, which is first on Python's path."""
    return subprocess.run([sys.executable, "-m", "experiments", "--help"], cwd=folder, capture_output=True, text=True)


def foreign_agents(folder: Path, module: bool = False) -> None:
    """Another `agents`, as a package or as a single file."""
    path = folder / "agents.py" if module else folder / "agents" / "__init__.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(FOREIGN)


@pytest.mark.parametrize("module", [False, True], ids=["package", "module"])
def test_another_package_on_the_path_is_named(module: bool, tmp_path: Path) -> None:
    """Exit code 2, one sentence with both places and the cure, no traceback."""
    foreign_agents(tmp_path, module)
    done = run(tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    message = " ".join(done.stderr.split())
    assert message.startswith("error: textenv needs its own package `agents`") and "Traceback" not in message
    assert str(tmp_path / "agents") in message and str(ROOT / "agents") in message
    assert "openai-agents" in message and "virtual environment of its own" in message


def test_an_overwritten_package_is_noticed(tmp_path: Path) -> None:
    """Both installed into one environment: the later one has replaced `agents/__init__.py`."""
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("results", "__py*"))
    foreign_agents(tmp_path)
    done = run(tmp_path)
    assert done.returncode == 2 and "which another package has overwritten" in " ".join(done.stderr.split())


def test_without_a_clash_nothing_is_said(tmp_path: Path) -> None:
    """Control: in an empty folder the command runs, and there is no clash here."""
    assert agents_clash() is None
    done = run(tmp_path)
    assert done.returncode == 0 and "compare" in done.stdout
