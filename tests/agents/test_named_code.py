"""Objects by their name: whatever is wrong is an error that names the module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agents import import_named


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from; what is imported in a test is forgotten after it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


@pytest.mark.parametrize(
    ("source", "cause", "message"),
    [
        ("import no_such_package", ModuleNotFoundError, "No module named 'no_such_package'"),
        ("x = unknown", NameError, "NameError in own_module: name 'unknown' is not defined"),
        ("class", SyntaxError, "SyntaxError in own_module: invalid syntax"),
        ("open('no/such/file')", FileNotFoundError, "FileNotFoundError in own_module: .*'no/such/file'"),
        ("import sys; sys.exit()", SystemExit, "SystemExit in own_module"),
        ("raise RuntimeError('two\\nlines')", RuntimeError, "RuntimeError in own_module: two lines$"),
        ("other = 3", AttributeError, "module 'own_module' has no attribute 'found'"),
    ],
)
def test_a_module_that_fails_is_named(source: str, cause: type[Exception], message: str, modules: Path) -> None:
    """With its error in one line, chained. Control: one that does not fail."""
    (modules / "own_module.py").write_text(source)
    with pytest.raises(ValueError, match=f"^'own_module:found' could not be imported: {message}") as error:
        import_named("own_module:found")
    assert type(error.value.__cause__) is cause
    (modules / "own_control.py").write_text("found = 3")
    assert import_named("own_control:found") == 3


@pytest.mark.parametrize("name", ["found", ":found", "module:", "./module.py:found", "..:found", "a b:found"])
def test_other_names_are_refused(name: str) -> None:
    """Before anything is imported."""
    with pytest.raises(ValueError, match="must be module:object, such as"):
        import_named(name)
