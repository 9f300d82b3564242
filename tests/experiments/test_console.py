"""Console output."""

from __future__ import annotations

import io
import warnings

import pytest
from rich.table import Table
from transformers.utils import logging

from experiments.console import escape_logs_and_warnings, plain_console


def test_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """[/INST] in a prompt is not parsed as markup."""
    plain_console(width=80).print(Table("[INST] once [/INST] :smile:"))
    assert "[INST] once [/INST] :smile:" in capsys.readouterr().out


def test_control_characters_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """In a line, in a cell, a heading and a title of a table; line feeds and other scripts are printed as they are."""
    table = Table("col\x07umn", title="\x1b]0;title")
    table.add_row("a\x1b[31mb\u202e")
    console = plain_console(width=80)
    console.print("x\x9by\nz 漢字 é")
    console.print(table)
    printed = capsys.readouterr().out
    assert not set(printed) & set("\x1b\x07\x9b\u202e")
    for shown in (r"col\x07umn", r"\x1b]0;title", r"a\x1b[31mb\u202e", "x\\x9by\nz 漢字 é"):
        assert shown in printed


def test_control_characters_in_logs_and_warnings_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in a model's files, for one; line feeds are kept, colours of the library are left out."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    escape_logs_and_warnings()
    escape_logs_and_warnings()  # twice is as once
    handler = logging.get_logger().handlers[0]
    monkeypatch.setattr(handler, "stream", stream := io.StringIO())
    logging.get_logger("transformers.modeling_utils").error("\x1b[1m%s\x1b[0m\n%d", "a\x1b]0;b\x07", 3)
    assert "a\\x1b]0;b\\x07\n3\n" in stream.getvalue() and "\x1b" not in stream.getvalue()
    text = warnings.formatwarning("a\x1b[2Jb", UserWarning, "file.py", 7)  # type: ignore[arg-type]
    assert text.startswith("file.py:7: UserWarning: a\\x1b[2Jb\n")
