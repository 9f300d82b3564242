"""Folders of runs: never overwritten, and resumed only with the same flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config import TrialConfig
from experiments.run_folder import open_folder, read_config, write_config
from tests.helpers.commands import tiny


def test_folders_are_never_overwritten(tmp_path: Path) -> None:
    """A folder that is not empty is refused, and so is resuming a run that does not exist."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        open_folder(tiny(out=tmp_path), "x", "now")
    with pytest.raises(ValueError, match="holds no run to resume"):
        open_folder(tiny(out=tmp_path / "new", resume=True), "x", "now")
    config = tiny(out=tmp_path / "used")
    assert open_folder(config, "x", "now") == tmp_path / "used"
    with pytest.raises(ValueError, match="add --resume"):
        open_folder(config, "x", "now")
    with pytest.raises(ValueError, match="holds no run"):
        read_config(tmp_path, TrialConfig)
    write_config(config, tmp_path)
    assert read_config(tmp_path, TrialConfig) == config
