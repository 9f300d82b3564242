"""Prompt files: the same rows from every format, and errors that name the place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tokenizers import byte_level
from textenv.data import load_prompts, printable, read_jsonl
from textenv.data.prompt_files import read_prompt_file

TOKENIZER = byte_level()


def as_csv(rows: list[Any]) -> str:
    """The rows as Python's csv module writes them."""
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_columns(rows: list[Any]) -> dict[str, Any]:
    """One list per field."""
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMATS: dict[str, tuple[str, Callable[[list[Any]], str]]] = {
    "lines": (".jsonl", lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
    "lines of .json": (".json", lambda rows: "\n\n".join(map(json.dumps, rows))),
    "array": (".json", json.dumps),
    "array of .jsonl": (".jsonl", json.dumps),
    "array over lines": (".ndjson", lambda rows: json.dumps(rows, indent=1)),
    "columns": (".json", lambda rows: json.dumps(as_columns(rows))),
    "columns over lines": (".json", lambda rows: json.dumps(as_columns(rows), indent=3)),
    "csv": (".csv", as_csv),
}
# not at its ends: white space, which is no prompt; nowhere: what text files change, and characters that are refused
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0\ufeff"), max_size=8).map(
    "x{}x".format
)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": texts, "a b": texts}), min_size=1, max_size=3))
def test_every_format_holds_the_same_rows(rows: list[Any]) -> None:
    """Quotes, commas, line feeds and separators of any script; the oracle is the list itself."""
    expected = load_prompts(rows, TOKENIZER)
    with TemporaryDirectory() as folder:
        for name, (end, write) in FORMATS.items():
            path = Path(folder) / f"prompts{end}"
            path.write_text(write(rows), encoding="utf-8", newline="")
            found = load_prompts(path, TOKENIZER)
            assert (found.texts, found.columns) == (expected.texts, expected.columns), name


def test_parquet_holds_the_same_rows(tmp_path: Path) -> None:
    """With values of other types: lists, messages, numbers, none."""
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": "hello", "a": [1, 2], "b": 0.5}, {"prompt": "wor\nld", "a": None, "b": 2.0}]
    files.write_table(arrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert [row for _, row in read_prompt_file(tmp_path / "p.parquet")] == rows


MALFORMED = [
    (".json", '[{"prompt": "a"},\n{"prompt": }]', r"\.json:2: not valid JSON .*Expecting value"),
    (".json", '[{"prompt": "a"}', r"\.json:1: not valid JSON"),
    (".json", '{"prompt": "a"}\n[}', r"\.json:2: not valid JSON"),
    (".jsonl", '{"prompt": "a"\n{"prompt": "b"}', r"\.jsonl:1: not valid JSON"),
    (".json", '["a", 3]', r"\.json, prompt 1: a prompt must be a string, messages, or an object"),
    (".json", "3", r"\.json:1: a prompt must be a string"),
    (".json", '{"prompt": ["a", ""]}', r"\.json, prompt 1: a prompt must have at least one token"),
    (".json", '{"prompt": {"0": "a"}}', r"\.json: the column 'prompt' must be a list"),
    (".json", '[{"prompt": "a", "prompt": "b"}]', r"\.json:1: .*'prompt' occurs twice"),
    (".json", '[{"prompt": "a"},\n{"prompt": "\\u0000"}]', r"\.json: a NUL character"),
    (".csv", 'prompt\n"a\nb"\nc,d\n', r"\.csv:4: must have 1 values"),
    (".csv", 'prompt\na\n"b', r"\.csv:3: not valid CSV"),
    (".csv", "prompt,prompt\na,b\n", r"\.csv:1: .*each once"),
    (".csv", "prompt\na\0\n", r"\.csv:2: a NUL character"),
    (".csv", "prompt,self\na,b\n", r"\.csv:2: the name 'self'"),
    (".txt", "a\n\ufeffb\n", r"\.txt:2: a byte-order mark"),
]


@pytest.mark.parametrize(("end", "text", "message"), MALFORMED)
def test_a_malformed_file_is_refused_with_the_place(end: str, text: str, message: str, tmp_path: Path) -> None:
    """One line that names the file and, where there is one, the line."""
    path = tmp_path / f"p{end}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_prompts(path, TOKENIZER)
    assert printable(str(error.value)) == str(error.value)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b'{"prompt": "a"}'])
def test_a_damaged_parquet_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever Arrow raises."""
    pytest.importorskip("pyarrow")
    (tmp_path / "p.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"p\.parquet: not valid Parquet"):
        load_prompts(tmp_path / "p.parquet", TOKENIZER)


def test_names_that_no_file_can_have() -> None:
    """A long text, and one with a NUL, given as a path."""
    for name in ("hello " * 2000, "a\0b", ""):
        with pytest.raises(ValueError, match="does not exist|got the folder"):
            load_prompts(name, TOKENIZER)


def test_other_files_of_json_lines_have_one_value_a_line(tmp_path: Path) -> None:
    """`read_jsonl` takes no array for rows."""
    (tmp_path / "p.jsonl").write_text('[{"prompt": "a"}]\n')
    assert read_jsonl(tmp_path / "p.jsonl") == [(f"{tmp_path / 'p.jsonl'}:1", [{"prompt": "a"}])]
