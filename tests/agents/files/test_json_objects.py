"""JSON objects with checksums: what was changed in any way is not read, and the error names the file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import files

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text().filter(lambda name: name != "checksum"), VALUES, max_size=5)


@given(content=OBJECTS)
def test_what_was_written_is_read(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any JSON object; numbers that are not finite become null, and the file is JSON for every reader."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_json(path, content)
    assert files.read_json(path) == files.finite(content)

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    json.loads(path.read_text(), parse_constant=refuse)


@settings(max_examples=300)
@given(data=st.data())
def test_every_changed_byte_is_noticed(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Flip a bit, cut the end, or insert a byte: a DamagedFile that names the file, unless the content is the same."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    content = {"text": "abc", "numbers": [1, 2.5, None], "deep": {"x": True}}
    files.write_json(path, content)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    if change == "flip":
        changed = whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :]
    elif change == "cut":
        changed = whole[:at]
    else:
        changed = whole[:at] + bytes([data.draw(st.integers(0, 255))]) + whole[at:]
    path.write_bytes(changed)
    try:
        assert files.read_json(path) == content  # white space, for example
    except files.DamagedFile as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"\xff", b"null", b'{"a": NaN, "checksum": ""}', b"[" * 100_000, b'{"a": 1}']
)
def test_what_is_no_object_with_a_checksum_is_damaged(content: bytes, tmp_path: Path) -> None:
    """Not JSON, another value than an object, NaN, too deep, or without a checksum."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile, match=r"a\.json"):
        files.read_json(path)


def test_a_missing_file_and_a_folder_are_damaged(tmp_path: Path) -> None:
    """The error names them too."""
    (tmp_path / "folder.json").mkdir()
    for name in ("nothing.json", "folder.json"):
        with pytest.raises(files.DamagedFile, match=f"{name} must be a JSON object, but cannot be read: "):
            files.read_json(tmp_path / name)


GOOD: dict[type, list[Any]] = {
    int: [0, 3, 2**70],
    float: [-1.5, 0.0, 1e300],
    str: ["", "x"],
    bool: [True, False],
    dict: [{}, {"a": 1}],
    list: [[], [1]],
    type(None): [None],
}


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.parametrize("other", GOOD)
def test_types_are_checked(kind: type, other: type) -> None:
    """A value of another type is refused by name and value; an integer is a float too, but true is no number."""
    path = Path("a.json")
    for value in GOOD[other]:
        if kind is other or (kind is float and other is int):
            files.check_types(path, {"x": value}, {"x": kind})
            files.check_types(path, {"x": value}, {"x": kind | str})
        else:
            with pytest.raises(files.DamagedFile, match=r"a\.json: x must be .*, got "):
                files.check_types(path, {"x": value}, {"x": kind})


@pytest.mark.parametrize(
    ("value", "kind"),
    [(-1, int), (10**400, float), (math.inf, float), (math.nan, float), (1.0, int), (None, int), (True, int | None)],
)
def test_numbers_are_in_range(value: Any, kind: Any) -> None:
    """Counts are not negative; floats are finite, and no integers beyond their range."""
    with pytest.raises(files.DamagedFile, match="x must be"):
        files.check_types(Path("a.json"), {"x": value}, {"x": kind})


def test_a_missing_field_is_refused_even_if_it_may_be_null() -> None:
    """null is written where there is nothing."""
    for kind in (int, float | None, dict):
        with pytest.raises(files.DamagedFile, match="x must be"):
            files.check_types(Path("a.json"), {"y": 1}, {"x": kind})
    files.check_types(Path("a.json"), {"x": None}, {"x": float | None})


def test_unknown_names_are_refused() -> None:
    """The error names the first and all that are known."""
    files.check_names(Path("a.json"), "settings", ["a"], ["a", "b"])
    with pytest.raises(files.DamagedFile, match=r"a\.json: settings must be among a, b, got 'c'"):
        files.check_names(Path("a.json"), "settings", ["a", "c"], ["b", "a"])
