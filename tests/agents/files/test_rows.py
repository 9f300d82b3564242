"""Rows: appended whole or not at all; a row that was cut off is left out; a broken one is an error."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents import files
from tests.helpers.storage import operations_fail

ROWS = st.lists(st.dictionaries(st.text(), st.integers() | st.floats() | st.text() | st.none(), max_size=3), max_size=5)


@given(first=ROWS, second=ROWS)
def test_rows_are_read_as_they_were_appended(
    first: list[Any], second: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By one process and by the next; `sync` returns size and checksum of the file."""
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    for rows in (first, second):
        file = files.Rows(path)
        for row in rows:
            file.append(row)
        content = path.read_bytes()
        assert file.sync() == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        file.close()
    assert files.read_rows(path) == files.finite([*first, *second])
    assert files.describe(path) == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the row is written, then the disk is full: the half is taken back, and the next row is whole."""
    file = files.Rows(tmp_path / "a.jsonl")
    file.append({"x": 1})
    write = os.write

    def half(descriptor: int, content: Any) -> int:
        if len(content) > 8:
            return write(descriptor, bytes(content)[:8])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        with pytest.raises(files.StorageError, match=r"Could not append to .*a\.jsonl': No space left on device"):
            file.append({"x": 2, "more": "than eight"})
    file.append({"x": 3})
    assert files.read_rows(tmp_path / "a.jsonl") == [{"x": 1}, {"x": 3}]
    assert file.sync() == files.describe(tmp_path / "a.jsonl")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write fewer bytes than it was given."""
    file = files.Rows(tmp_path / "a.jsonl")
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, bytes(content)[:3]))
    file.append({"name": "a long value"})
    monkeypatch.undo()
    assert files.read_rows(tmp_path / "a.jsonl") == [{"name": "a long value"}]


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_row_that_was_cut_off_is_left_out(cut: int, tmp_path: Path) -> None:
    """It has no line feed at its end: the process was killed while it wrote."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n{"x": 2}\n'[:-cut])
    assert files.read_rows(path) == [{"x": 1}]


@pytest.mark.parametrize("line", [b"", b"{", b"3", b"[]", b"\xff", b'{"x": NaN}', b"[" * 100_000])
def test_a_broken_row_is_named(line: bytes, tmp_path: Path) -> None:
    """By file and line, wherever it is."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"x": 1}\n' + line + b'\n{"x": 2}\n')
    with pytest.raises(files.DamagedFile, match=r"a\.jsonl:2 must be a JSON object"):
        files.read_rows(path)


def test_no_file_has_no_rows_and_a_folder_is_damaged(tmp_path: Path) -> None:
    """A folder in the place of the file is named."""
    assert files.read_rows(tmp_path / "nothing.jsonl") == []
    with pytest.raises(files.DamagedFile, match="cannot be read: Is a directory"):
        files.read_rows(tmp_path)
    with pytest.raises(files.StorageError, match="Could not open"):
        files.Rows(tmp_path)


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    """Rows of a run folder do not land in a file outside of it."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "theirs")
    with pytest.raises(files.StorageError, match=r"Could not open .*a\.jsonl"):
        files.Rows(tmp_path / "a.jsonl")
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    """JSON has no NaN."""
    file = files.Rows(tmp_path / "a.jsonl")
    file.append({"x": float("nan"), "y": [float("inf")]})
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"x": None, "y": [None]}


def test_a_failed_sync_is_a_storage_error(tmp_path: Path) -> None:
    """The message names the file."""
    file = files.Rows(tmp_path / "a.jsonl")
    with operations_fail(0), pytest.raises(files.StorageError, match=r"Could not sync .*a\.jsonl"):
        file.sync()
