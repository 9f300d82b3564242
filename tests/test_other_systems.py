"""What can be held of Windows without one: names of files, encodings. (`make types` checks what its modules have.)"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections import Counter
from pathlib import PurePosixPath

import pytest

from experiments.agent_classes import short_name
from experiments.optimum.tasks import suite_tasks
from experiments.optimum.variants import variants
from tests.helpers.paths import ROOT

PACKAGES = ("textenv", "agents", "experiments")
TEXT = {"read_text", "write_text", "open", "fdopen"}
OURS = {"read_text", "write_text", "files.write_text", "os.open"}  # they name one; os.open opens no text
REFUSED = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)


def refused(path: str) -> list[str]:
    """The parts of a relative path that Windows does not take."""
    return [part for part in PurePosixPath(path).parts if REFUSED.search(part)]


@pytest.mark.parametrize("name", ["a:b", "what?", "x.", "NUL", "com1.json", "a*"])
def test_names_that_windows_refuses_are_found(name: str) -> None:
    """Control."""
    assert refused(f"runs/{name}/config.json") == [name]


def test_a_checkout_has_names_that_windows_takes() -> None:
    """Also where only the case differs, which Windows and macOS do not tell apart."""
    if shutil.which("git") is None:
        pytest.skip("git lists the files")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if listed.returncode:
        pytest.skip("not a checkout, or another user's")
    paths = [path for path in listed.stdout.split("\0") if path]
    assert len(paths) > 500 and [path for path in paths if refused(path)] == []
    assert [path for path, count in Counter(path.lower() for path in paths).items() if count > 1] == []


def test_folders_of_trials_have_names_that_windows_takes() -> None:
    """Those of the suite, which have step sizes and settings in their names, and those of users' agents."""
    agents, peers = ["reinforce", "grpo", "path_consistency"], ["sb3-ppo", "trl-rloo", "trl-grpo"]
    tasks = suite_tasks(["toys", "stories"], "model", "prompts.txt")
    folders = {
        variant.folder(ROOT).relative_to(ROOT).as_posix()
        for each in tasks
        for variant in variants(each, agents, peers, [0])
    }
    assert len(folders) > 20 and {name for name in folders if refused(name)} == set()
    assert refused(short_name("my.package.module:MyAgent")) == []


def without_encoding(source: str) -> list[int]:
    """The lines that open a file as text without naming an encoding. Ruff's rule knows only what it sees is a path."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in TEXT or ast.unparse(node.func) in OURS:
            continue
        keywords = {each.arg: each.value for each in node.keywords}
        given = [str(each.value) for each in [*node.args, *keywords.values()] if isinstance(each, ast.Constant)]
        fine = any(re.fullmatch(r"[rwax+]*b[rwax+]*|utf-8", each) for each in given)  # binary, or a place of its own
        if not fine and "encoding" not in keywords and None not in keywords:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("(a / b).read_text()", [1]),
        ("os.fdopen(1, 'w')", [1]),
        ("path.open()", [1]),
        ("path.write_text(x, encoding='utf-8')", []),
        ("path.read_text('utf-8')", []),
        ("open(path, 'rb')\nos.open(path, 0)", []),
    ],
)
def test_text_without_an_encoding_is_found(source: str, found: list[int]) -> None:
    """Control."""
    assert without_encoding(source) == found


def test_text_has_an_encoding() -> None:
    """Windows has another default."""
    files = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): without_encoding(path.read_text(encoding="utf-8")) for path in files}
    assert len(found) > 300 and {name: lines for name, lines in found.items() if lines} == {}
