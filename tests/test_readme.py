"""The README is true: its code runs as it stands, its links lead somewhere, and it names every flag right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro

from experiments import __main__ as command_line
from tests.helpers.paths import ROOT

README = (ROOT / "README.md").read_text()
Command: Any = command_line.Command
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_code() -> None:
    """An environment, a reward's unit test, an agent."""
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_its_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block by itself, copied into an empty folder."""
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


def test_its_links_lead_somewhere() -> None:
    """Every relative link names a file of this repository."""
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_functions_that_it_names_are_where_it_says() -> None:
    """`[file](path) `function`` in the ladder: the file defines it."""
    named = [
        (path, name)
        for path, names in re.findall(r"\]\(([\w/]+\.py)\)((?:,? ?`\w+`)+)", README)
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert len(named) > 5
    for path, name in named:
        assert re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{path} has no {name}"


def test_its_file_tree_is_complete() -> None:
    """Every module stands in the file tree."""
    tree = README.split("## Files")[1].split("```")[1]
    modules = [path.name for folder in ("textenv", "agents") for path in (ROOT / folder).glob("*.py")]
    assert [name for name in modules if name != "__init__.py" and name not in tree] == []


def commands() -> list[str]:
    """Every `python -m experiments` command of the README, with its shell variables put in."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL):
        block = re.sub(r"\\\n", " ", block)
        variables = dict(re.findall(r'^(\w+)="([^"]*)"', block, flags=re.MULTILINE))
        VARIABLES.update(variables)
        for line in re.findall(r"python -m experiments ([a-z][^#\n]*)", block):
            for name, value in VARIABLES.items():
                line = line.replace(f"${name}", value)
            commands.append(" ".join(line.split()))
    return commands


VARIABLES: dict[str, str] = {}  # that an earlier block has set


@pytest.mark.parametrize("command", commands())
def test_it_names_every_flag_right(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes each command as it stands, where what it needs is installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: object())
    tyro.cli(Command, args=shlex.split(command))


def test_a_wrong_flag_is_seen() -> None:
    """Control: there are commands, and one with a flag that is not there is refused."""
    assert len(commands()) > 5
    with pytest.raises(SystemExit):
        tyro.cli(Command, args=[*shlex.split(commands()[0]), "--no-such-flag", "1"])
