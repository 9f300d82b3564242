"""A file that one of several creates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agents import files


@pytest.mark.parametrize("hard_links", [True, False])
def test_the_first_one_creates_the_file(hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, with its checksum; the second one learns that it has not, and nothing is left beside it."""

    def no_link(*paths: Any) -> None:
        raise OSError("not supported")

    if not hard_links:
        monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "lock.json"
    assert files.create_json(path, {"owner": 1}, "a/b")
    assert not files.create_json(path, {"owner": 2}, "c")
    assert files.read_json(path) == {"owner": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_anything_of_this_name_counts(tmp_path: Path) -> None:
    """A folder, and a link that leads nowhere."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "link"):
        assert not files.create_json(tmp_path / name, {}, "a")
    assert not (tmp_path / "nowhere").exists()
