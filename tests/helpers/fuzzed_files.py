"""Damages of any file: of its bytes, and of JSON content that is then written with the right checksums."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

HOSTILE = "hostile_in_a_file"  # a module that must not be imported
PICKLED = f"c{HOSTILE}\nrun\n(V1\ntR.".encode()  # a pickle that imports it and calls a function of it

# What a field may be changed to. There are no large sizes: a model of that size would be made.
ODD_JSON: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 0.5, -1e308, 1e308, "", "a", "gpt2", "[END]", "\x1b[2J", "\ud800", [], {}),
    *([None], [[]], ["a", "a"], {"a": None}, {"": {"": []}}, "../../outside", "/outside", f"{HOSTILE}:run", HOSTILE),
    *({"auto_map": {"AutoConfig": f"{HOSTILE}.run"}}, json.loads("[" * 50 + "]" * 50)),
]


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a file after they were cut off, flipped, replaced, inserted, repeated or exchanged."""
    size = len(content)
    position = st.integers(0, size)
    anything = st.binary(max_size=30) | st.sampled_from(
        [PICKLED, b"\0" * 64, b"\xff", b"\n", b"{}", b"[]", b'{"a": 1}']
    )
    lines = content.split(b"\n")
    flipped = st.builds(lambda at, bit: content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :],
                        st.integers(0, size - 1), st.sampled_from([1, 2, 16, 32, 128]))  # fmt: skip
    spliced = st.builds(lambda at, end, new: content[: min(at, end)] + new + content[max(at, end) :],
                        position, position, anything)  # fmt: skip
    return st.one_of(
        st.builds(lambda end: content[:end], position),
        flipped,
        spliced,
        anything,
        st.builds(lambda more: content + more, anything),
        st.permutations(lines[:50]).map(lambda order: b"\n".join([*order, *lines[50:]])),
    )


def edited(content: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON object after one to three of its fields were changed, removed, renamed or added."""
    return st.builds(_edit, st.just(content), st.lists(_EDITS, min_size=1, max_size=3))


_EDITS = st.tuples(
    st.integers(0, 10**6), st.sampled_from(["change", "change", "remove", "rename", "add"]), st.sampled_from(ODD_JSON)
)


def _edit(content: dict[str, Any], edits: list[tuple[int, str, Any]]) -> dict[str, Any]:
    changed = copy.deepcopy(content)
    for pick, kind, value in edits:
        places = list(_places(changed))
        if not places:
            break
        holder, key = places[pick % len(places)]
        if kind == "change":
            holder[key] = copy.deepcopy(value)
        elif kind == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            name = value if isinstance(value, str) and value.isprintable() else "other"
            holder[name] = holder.pop(key) if kind == "rename" else copy.deepcopy(value)
        else:
            holder.insert(key, copy.deepcopy(value))
    return changed


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every field and member, as what holds it and its key or index."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])
