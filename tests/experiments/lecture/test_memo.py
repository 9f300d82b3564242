"""Pieces of a claim that were measured are not measured again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents import files
from experiments.lecture.memo import Memo, no_memo


class Counted:
    """A measurement that counts its calls."""

    def __init__(self, value: Any) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Any:
        """Returns the value."""
        self.calls += 1
        return self.value


def test_a_piece_is_measured_once(tmp_path: Path) -> None:
    """Kept between two memos of a folder, under its name; both calls return the same JSON values."""
    one, other = Counted({"a": (1, 0.1 + 0.2)}), Counted([None])
    first = Memo(tmp_path / "claim")("clip 0.2, 16 epochs", one)
    again = Memo(tmp_path / "claim")
    assert first == again("clip 0.2, 16 epochs", one) == no_memo("", one) == {"a": [1, 0.1 + 0.2]}
    assert one.calls == 2  # the memo's once, and without a memo
    assert again("clip 0.2, 8 epochs", other) == [None] and other.calls == 1
    assert again("clip 0.2, 8 epochs", other) == [None] and other.calls == 1  # None inside is a value


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_damaged_piece_is_measured_again(damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And said."""
    counted = Counted(0.25)
    memo = Memo(tmp_path)
    memo("piece", counted)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "other":
        files.write_json(path, {"name": "another", "value": 1})
    else:
        path.write_bytes({"empty": b"", "cut": content[:-9], "flipped": content.replace(b"0.25", b"0.75")}[damage])
    assert memo("piece", counted) == 0.25 and counted.calls == 2
    assert "piece.json" in capsys.readouterr().out
    assert memo("piece", counted) == 0.25 and counted.calls == 2


def test_a_failed_measurement_keeps_nothing(tmp_path: Path) -> None:
    """The error is raised; the next call measures."""
    with pytest.raises(ZeroDivisionError):
        Memo(tmp_path)("piece", lambda: 1 / 0)
    assert Memo(tmp_path)("piece", lambda: 1) == 1
