"""What a contributor meets first: pre-commit hooks, and targets of the Makefile that tests/README.md names."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.paths import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def recipe(target: str) -> list[str]:
    """The commands of a target of the Makefile that are programs of the virtual environment, without it."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    return [line.removeprefix("\t$(BIN)/").removesuffix(" .") for line in lines.splitlines()]


def hooks() -> list[dict[str, Any]]:
    """The hooks of `.pre-commit-config.yaml`."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    return [hook for repository in config["repos"] for hook in repository["hooks"]]


def test_the_hooks_run_what_make_lint_and_make_types_run() -> None:
    """The same programs with the same arguments, from the project's environment. Control: both have some."""
    run = [hook["entry"].removeprefix(".venv/bin/") for hook in hooks()]
    assert run == [*recipe("lint"), *recipe("types")] and len(run) == 5


def test_the_hooks_need_no_network() -> None:
    """They are local, and what they run is installed already."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks()} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks())


def test_the_targets_that_the_readme_names_exist() -> None:
    """`make NAME` in tests/README.md. Control: it names many."""
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    named = {name for names in re.findall(r"make ([a-z-]+(?: [a-z-]+)*)[`\s\"]", text) for name in names.split()}
    assert {"coverage", "newest", "lint", "types"} <= named & targets
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


@pytest.mark.parametrize("python", ["", "/usr/bin/python3.13"])
def test_python_3_13_is_tried_where_it_is_there(python: str, tmp_path: Path) -> None:
    """Where it is not, `make newest` says so and succeeds."""
    done = subprocess.run(
        ["make", "--dry-run", "newest", f"NEWEST={python}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ("python3.13 is not on PATH" in done.stdout) == (python == "")
    assert (f"{python} -m venv .venv-newest" in done.stdout) == (python != "")
