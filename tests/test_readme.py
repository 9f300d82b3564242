"""The READMEs are correct: their code runs unchanged, their links exist, and their commands have valid flags."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from experiments import command_line
from tests.helpers.paths import ROOT

FOLDERS = (
    "",
    "textenv",
    "agents",
    "experiments",
    *(f"experiments/{name}" for name in ("lecture", "bench", "examples")),
)
READMES = [ROOT / folder / "README.md" for folder in (*FOLDERS, "tests")]
PACKAGES = ("textenv", "agents", "experiments")


def text_of(readme: Path) -> str:
    """The text of a README."""
    return readme.read_text(encoding="utf-8")


def name_of(readme: Path) -> str:
    """The path of a README in the repository."""
    return readme.relative_to(ROOT).as_posix()


BLOCKS = [
    pytest.param(code, id=f"{name_of(readme)} {number}")
    for readme in READMES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text_of(readme), flags=re.DOTALL))
]
of_every_readme = pytest.mark.parametrize("readme", READMES, ids=name_of)


def test_they_have_code() -> None:
    """An environment and an agent in the first; a reward's unit test, other libraries."""
    assert len(BLOCKS) >= 6 and len(text_of(READMES[0]).splitlines()) <= 150


@pytest.mark.parametrize("code", BLOCKS)
def test_their_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block runs by itself in an empty folder, and so do its tests, which use all that they draw."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "<README.md>", "exec"), namespace)  # no file, which Hypothesis would read
    tests = [each for each in ast.walk(ast.parse(code)) if isinstance(each, ast.FunctionDef) and each.decorator_list]
    for test in (each for each in tests if each.name.startswith("test_")):
        namespace[test.name]()
        used = {node.id for node in ast.walk(test) if isinstance(node, ast.Name)}
        assert {argument.arg for argument in test.args.args} <= used


def anchors(readme: Path) -> set[str]:
    """The anchors of a README's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(readme), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@of_every_readme
def test_its_links_exist(readme: Path) -> None:
    """Every relative link names a file of this repository, and a heading of it."""
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text_of(readme)) if "://" not in link]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = readme.parent / path if path else readme
        assert target.is_file(), f"{name_of(readme)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(readme)}: {link}"


def test_the_linked_files_define_the_functions_named_with_them() -> None:
    """`[file](path) `function`` in the ladder: the file defines the function."""
    named = [
        (readme.parent / path, name)
        for readme in READMES
        for path, names in re.findall(r"\]\(([\w./]+\.py)\)((?:,? ?`\w+`)+)", text_of(readme))
        for name in re.findall(r"`(\w+)`", names)
    ]
    assert len(named) > 10
    for path, name in named:
        assert re.search(rf"def {name}\(", path.read_text()), f"{path} has no {name}"


def modules_in(tree: str) -> set[str]:
    """Paths of the modules in a file tree, whose lines are indented by two spaces per folder and start with names."""
    modules: set[str] = set()
    folders: list[str] = []
    for line in tree.strip().splitlines():
        names = line.strip().split("  ")[0].split()
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        folders += [name.rstrip("/") for name in names if name.endswith("/")]
        modules |= {"/".join([*folders, name]) for name in names if name.endswith(".py")}
    return modules


@pytest.mark.parametrize("package", ["textenv", "agents"])
def test_its_file_tree_is_complete(package: str) -> None:
    """The file tree of a package's README has every module, in its folder, and no other."""
    named = modules_in(text_of(ROOT / package / "README.md").split("## Files")[1].split("```")[1])
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"
    }
    assert len(modules) > 30
    assert sorted(modules - named) == []
    assert sorted(named - modules) == []


def commands() -> list[str]:
    """Every `python -m experiments` command of the READMEs, with its shell variables replaced by their values."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", "\n".join(map(text_of, READMES)), flags=re.DOTALL):
        block = re.sub(r"\\\n", " ", block)
        variables = dict(re.findall(r'^(\w+)="([^"]*)"', block, flags=re.MULTILINE))
        VARIABLES.update(variables)
        for line in re.findall(r"python -m experiments ([a-z][^#\n]*)", block):
            for name, value in VARIABLES.items():
                line = line.replace(f"${name}", value)
            commands.append(" ".join(line.split()))
    return commands


VARIABLES: dict[str, str] = {}  # of earlier blocks too


def write_examples(folder: Path) -> list[str]:
    """Writes the code that a README names as a file, "in `NAME.py`"; returns the names."""
    named = [
        found
        for readme in READMES
        for found in re.findall(r"`(\w+\.py)`\n\n```python\n(.*?)```", text_of(readme), flags=re.DOTALL)
    ]
    for name, code in named:
        (folder / name).write_text(code, encoding="utf-8")
    return [name for name, _ in named]


@pytest.mark.parametrize("command", commands())
def test_its_commands_have_valid_flags(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line parses each command unchanged, where its optional packages are installed."""
    assert "best_of_group.py" in write_examples(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.util.find_spec
    optional = {"ray": object(), "trl": object(), "wandb": object(), "peft": object()}
    monkeypatch.setattr("importlib.util.find_spec", lambda *name: optional.get(name[0]) or found(*name))
    command_line.read_arguments(shlex.split(command))


def test_an_unknown_flag_is_refused() -> None:
    """Control: there are commands, and one with an unknown flag is refused."""
    assert len(commands()) > 5
    with pytest.raises(SystemExit):
        command_line.read_arguments([*shlex.split(commands()[0]), "--no-such-flag", "1"])


def sources() -> list[Path]:
    """The READMEs and every module."""
    return [*READMES, *(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))]


def test_nothing_is_to_be_installed_from_an_index() -> None:
    """textenv is on no package index: every hint says what works from a clone, `pip install -e ".[extra]"`."""
    hint = re.compile(r"pip install [^\n|]*textenv")
    assert hint.search("pip install textenv[peft]")  # control
    assert [str(path) for path in sources() if hint.search(path.read_text(encoding="utf-8"))] == []


def test_the_hints_name_extras_that_exist() -> None:
    """Every `.[extra]` in a hint is in pyproject.toml."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    hint = re.compile(r"""pip install -e ['"\\]*\.\[(\w+)\]""")
    named = {name for path in sources() for name in hint.findall(path.read_text(encoding="utf-8"))}
    assert {"peft", "sentiment", "vader"} <= named <= set(extras)
