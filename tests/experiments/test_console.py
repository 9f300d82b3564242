"""Console output."""

from __future__ import annotations

import pytest
from rich.table import Table

from experiments.console import plain_console


def test_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """[/INST] in a prompt is not parsed as markup."""
    plain_console(width=80).print(Table("[INST] once [/INST] :smile:"))
    assert "[INST] once [/INST] :smile:" in capsys.readouterr().out
