"""The layout holds: tests mirror the source, no test module imports another, files stay short.

Imports among the packages themselves are checked by import-linter (`make lint`).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

TESTS = ROOT / "tests"
PACKAGES = ("textenv", "agents", "experiments")
LONGEST_TEST = 500  # lines
TEST_MODULE = re.compile(r"tests(\.\w+)*\.test_\w+")


def imported(source: str) -> set[str]:
    """The modules that a source imports, with what `from` takes from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules() -> list[Path]:
    """Every Python file of the tests."""
    return sorted(TESTS.rglob("*.py"))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("from tests.agents.test_gradients import check", {"tests.agents.test_gradients"}),
        ("def late():\n    import tests.test_readme", {"tests.test_readme"}),
        ("from tests.agents import test_gradients", {"tests.agents.test_gradients"}),
        ("from tests.helpers.tasks import words", set()),
    ],
)
def test_imports_of_test_modules_are_found(source: str, names: set[str]) -> None:
    """Control: in each way to write one."""
    assert {name for name in imported(source) if TEST_MODULE.fullmatch(name)} == names


def test_no_test_module_imports_another() -> None:
    """What several share is in tests/helpers/."""
    found = {str(path.relative_to(ROOT)): imported(path.read_text(encoding="utf-8")) for path in modules()}
    wrong = {path: [n for n in names if TEST_MODULE.fullmatch(n)] for path, names in found.items()}
    assert len(found) > 50 and {path: names for path, names in wrong.items() if names} == {}


def ancestors_imported(path: Path) -> set[str]:
    """The packages above a module that it imports itself: a cycle, since a package's `__init__` imports its modules."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    above = {".".join(parts[:length]) for length in range(1, len(parts))}
    return above & imported(path.read_text(encoding="utf-8"))


def test_no_module_imports_a_package_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """import-linter looks for cycles among siblings alone. Control: such an import in a function is found."""
    sources = [p for name in PACKAGES for p in (ROOT / name).rglob("*.py") if p.name != "__init__.py"]
    assert len(sources) > 100
    assert {str(path): found for path in sources if (found := ancestors_imported(path))} == {}
    control = tmp_path / "agents" / "training" / "metrics.py"
    control.parent.mkdir(parents=True)
    control.write_text("def late():\n    from agents.training import run_epochs\n")
    monkeypatch.setattr("tests.test_layout.ROOT", tmp_path)
    assert ancestors_imported(control) == {"agents.training"}


def test_test_files_are_short() -> None:
    """One subject a file."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {path: length for path, length in lengths.items() if length > LONGEST_TEST} == {}


def test_the_folders_of_the_tests_mirror_those_of_the_source() -> None:
    """Every folder of tests of a package has the folder that it tests."""
    folders = [path for name in PACKAGES for path in (TESTS / name).rglob("*") if path.is_dir() and path.name[0] != "_"]
    assert len(folders) > 10
    assert [str(path) for path in folders if not (ROOT / path.relative_to(TESTS)).is_dir()] == []


@pytest.mark.parametrize("package", ["textenv", "agents"])
def test_tests_import_upwards_no_more_than_the_source(package: str) -> None:
    """Tests of textenv and agents do without experiments."""
    for path in (TESTS / package).rglob("*.py"):
        names = {name.split(".")[0] for name in imported(path.read_text(encoding="utf-8"))}
        assert "experiments" not in names, path
