"""What can be held of Windows without one: names of files. (`make types` checks what modules of it have.)"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import PurePosixPath

import pytest

from experiments.agent_classes import short_name
from experiments.optimum.tasks import suite_tasks
from experiments.optimum.variants import variants
from tests.helpers.paths import ROOT

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
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, encoding="utf-8").stdout
    paths = [path for path in listed.split("\0") if path]
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
