"""Progress in a log file: few lines."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from experiments.console import progress_bar, show


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_in_a_file_is_rarely_drawn(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its start and end; on a terminal with every text behind it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    bar: Any = progress_bar(total=100, unit="tok")
    for number in range(100):
        bar.update()
        show(bar, f"number {number}")
    bar.close()
    drawn = capsys.readouterr().err.count("\r")
    assert drawn > 100 if terminal else 2 <= drawn <= 4
