"""Another package named `agents` is noticed before anything of it is imported."""

from __future__ import annotations

import importlib
import importlib.machinery
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


def foreign_agents(folder: Path, file: str = "agents/__init__.py") -> None:
    """Another `agents`: a package, or a single file, or a folder without `__init__.py`."""
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(FOREIGN)


@pytest.mark.parametrize("file", ["agents/__init__.py", "agents.py"])
def test_another_package_on_the_path_is_named(file: str, tmp_path: Path) -> None:
    """Exit code 2, one sentence with both places and the cure, no traceback."""
    foreign_agents(tmp_path, file)
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


def test_what_python_finds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without `__init__.py`, where nothing else is found; and no `agents` at all."""
    foreign_agents(tmp_path, "agents/other.py")
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert f"Python finds another one, {tmp_path / 'agents'}." in str(agents_clash_anew())
    monkeypatch.setattr(sys, "path", [])
    assert "Python finds none." in str(agents_clash_anew())


def agents_clash_anew() -> str | None:
    """`agents_clash` in a process that has not imported `agents` yet."""
    loaded = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] == "agents"}
    importlib.invalidate_caches()
    try:
        return agents_clash()
    finally:
        sys.modules.update(loaded)


def test_without_a_clash_there_is_no_message(tmp_path: Path) -> None:
    """Control: in an empty folder the command runs, and there is no clash here."""
    assert agents_clash() is None
    done = run(tmp_path)
    assert done.returncode == 0 and "compare" in done.stdout
