"""Preference pairs: files, splits, and invalid lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.errors import FlagError
from experiments.reward_model import RewardModelConfig, reward_model
from experiments.reward_model.pairs import Pair, read_pairs, split
from tests.helpers.classifiers import write_pairs


def test_all_pairs_of_a_prompt_are_on_one_side() -> None:
    """No prompt is in both parts; with only one prompt, pairs are drawn one by one."""
    pairs = [Pair(f"p{i % 10}", "a", f"b{i}") for i in range(100)]
    train, test = split(pairs, 0.2, np.random.default_rng(0))
    assert len(test) == 20 and sorted(train + test) == sorted(pairs)
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in test}
    train, test = split([pair._replace(prompt="p") for pair in pairs], 0.2, np.random.default_rng(0))
    assert len(test) == 20 and len(train) == 80


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", ":2: not valid JSON"),
        ('{"prompt": "a", "chosen": "b"}', ":2: must be an object .* no 'rejected'"),
        ('{"prompt": "a", "chosen": "b", "rejected": 3}', ":2: must be an object .* 'rejected' is 3"),
        ('{"prompt": "a", "chosen": "b", "rejected": "\\ud800"}', ":2: not valid JSON .*surrogates not allowed"),
        (
            '{"prompt": "a", "chosen": "b ", "rejected": " b"}',
            ":2: chosen and rejected are the same, 'b ', apart from white space at their ends.",
        ),
        ("[" * 100_000, ":2: not valid JSON"),
        ('["a", "b"]', ":2: must be an object"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}', ":2: .*'chosen' occurs twice"),
        ('{"prompt": "a", "chosen": "b\\u0000", "rejected": "c"}', ":2: a NUL character"),
        ('{"prompt": "a", "chosen": "b\ufeff", "rejected": "c"}', ":2: a byte-order mark"),
        ('{"prompt": "a", "chosen": " ", "rejected": "c"}', ":2: the completion 'chosen' is empty"),
        ('{"prompt": "a", "chosen": "c", "rejected": "c"}', ":2: chosen and rejected are the same, 'c'."),
    ],
)
def test_a_bad_pairs_file_is_refused_before_loading(line: str, message: str, tmp_path: Path) -> None:
    """The error names file and line; no output folder is made."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n' + line + "\n")
    with pytest.raises(FlagError, match=f"pairs.jsonl{message}"):
        reward_model(RewardModelConfig(path, "/nowhere", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    """A completion may contain U+2028; a byte-order mark is skipped."""
    path = tmp_path / "pairs.jsonl"
    path.write_text('\ufeff{"prompt": "a", "chosen": "b\u2028c", "rejected": "c"}\n', encoding="utf-8")
    assert read_pairs(path) == [Pair("a", "b\u2028c", "c")]


ROWS = [{"prompt": "a", "chosen": "b", "rejected": 'c "d",\ne'}, {"prompt": "", "chosen": "f", "rejected": "1"}]
COLUMNS = {name: [row[name] for row in ROWS] for name in Pair._fields}


def write_csv(path: Path, rows: list[dict[str, str]] = ROWS) -> None:
    """The rows as Python's csv module writes them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: list[Any] = ROWS) -> None:
    """The rows as pyarrow writes them."""
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(arrow.Table.from_pylist(rows), path)


FORMATS: dict[str, Callable[[Path], Any]] = {
    "p.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "p.ndjson": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "lines.json": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pretty.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "columns.json": lambda path: path.write_text(json.dumps(COLUMNS)),
    "p.CSV": write_csv,
    "p.parquet": write_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_prompts_holds_pairs(name: str, tmp_path: Path) -> None:
    """As the same fields, with quotes and line feeds."""
    FORMATS[name](tmp_path / name)
    assert read_pairs(tmp_path / name) == [Pair(**row) for row in ROWS]


def test_a_single_pair_over_several_lines(tmp_path: Path) -> None:
    """An object that is no object of columns."""
    (tmp_path / "p.json").write_text(json.dumps(ROWS[0], indent=2))
    assert read_pairs(tmp_path / "p.json") == [Pair(**ROWS[0])]


@pytest.mark.parametrize("name", ["p.txt", "p.tsv", "p.jsonl.gz", "p"])
def test_a_file_of_another_format_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    """Whatever it holds; the error lists the formats."""
    FORMATS["p.jsonl"](tmp_path / name)
    formats = r"\.jsonl, \.ndjson, \.json, \.csv, \.parquet, got"
    with pytest.raises(FlagError, match=f"--pairs: The name of a file of pairs must end in one of {formats}"):
        read_pairs(tmp_path / name)
    with pytest.raises(FlagError, match="--pairs: The file .*missing.* does not exist"):
        read_pairs(tmp_path / f"missing{name}")


@pytest.mark.parametrize("name", ["array.json", "columns.json", "p.csv", "p.parquet"])
def test_a_bad_pair_of_any_format_has_a_place(name: str, tmp_path: Path) -> None:
    """A line, or the number of the pair."""
    bad = [*ROWS, {"prompt": "a", "chosen": " ", "rejected": "c"}]
    path = tmp_path / name
    if name == "p.csv":
        write_csv(path, bad)
    elif name == "p.parquet":
        write_parquet(path, bad)
    else:
        columns = {field: [row[field] for row in bad] for field in Pair._fields}
        path.write_text(json.dumps(bad if name == "array.json" else columns))
    place = ":5" if name == "p.csv" else ", pair 2"
    with pytest.raises(FlagError, match=f"{name}{place}: the completion 'chosen' is empty"):
        read_pairs(path)
    (tmp_path / "headless.csv").write_text("a,b,c\nd,e,f\n")
    with pytest.raises(FlagError, match="--pairs: .*csv:1: .*'prompt', 'chosen', 'rejected' among them, got"):
        read_pairs(tmp_path / "headless.csv")


USER, GOOD, BAD = ({"role": role, "content": role} for role in ("user", "assistant", "system"))
OF_TRL: dict[str, Any] = {  # TRL's forms of preferences
    "conversations": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "conversations after a text": {"prompt": "a", "chosen": [GOOD], "rejected": [BAD]},
    "conversations without prompts": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "texts without prompts": {"chosen": "a b", "rejected": "a c"},
}


@pytest.mark.parametrize("kind", OF_TRL)
@pytest.mark.parametrize("name", ["p.jsonl", "one.json", "array.json", "columns.json", "p.csv", "p.parquet", "folder"])
def test_conversations_and_pairs_without_a_prompt_are_refused_with_a_hint(kind: str, name: str, tmp_path: Path) -> None:
    """In every format that can hold them."""
    path, row = tmp_path / name, OF_TRL[kind]
    if name == "p.csv":
        if "texts" not in kind:
            pytest.skip("a CSV file holds texts")
        write_csv(path, [row])
    elif name == "p.parquet":
        write_parquet(path, [row])
    elif name == "folder":
        pytest.importorskip("datasets").Dataset.from_list([row]).save_to_disk(path)
    else:
        columns = {field: [value] for field, value in row.items()}
        content = {"array.json": [row], "columns.json": columns}.get(name, row)
        path.write_text(json.dumps(content) + "\n")
    with pytest.raises(FlagError, match="Write conversations as text, .*chosen and rejected both begin with") as error:
        read_pairs(path)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("splits", [False, True])
def test_a_datasets_folder_holds_the_same_pairs(splits: bool, tmp_path: Path) -> None:
    """A folder of `save_to_disk`, with splits or without; a bad row is named; another folder is refused."""
    datasets = pytest.importorskip("datasets")
    rows = [json.loads(line) for line in write_pairs(tmp_path / "pairs.jsonl", 8).open()]

    def saved(name: str, rows: list[Any]) -> Path:
        data = datasets.Dataset.from_list(rows)
        (datasets.DatasetDict(train=data) if splits else data).save_to_disk(tmp_path / name)
        return tmp_path / name

    assert read_pairs(saved("good", rows)) == read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(FlagError, match="row 8: the completion 'rejected' is empty"):
        read_pairs(saved("bad", [*rows, {"prompt": "a", "chosen": "b", "rejected": ""}]))
    with pytest.raises(FlagError, match="is not a folder written by datasets' save_to_disk"):
        read_pairs(tmp_path)
    datasets.DatasetDict(test=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / "test")
    with pytest.raises(FlagError, match="^--pairs: '.*test' has no split 'train', only test; save"):
        read_pairs(tmp_path / "test")


def test_a_datasets_folder_opens_nothing_else(tmp_path: Path) -> None:
    """Columns that are decoded from files, and formats that need other libraries, are not read; only strings are."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "image.png").write_bytes(b"not an image")
    image = {"path": str(tmp_path / "image.png"), "bytes": None}
    rows: list[Any] = [{"prompt": "a", "chosen": "b", "rejected": "c", "image": image}]
    strings = {name: datasets.Value("string") for name in Pair._fields}
    features = datasets.Features(strings | {"image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "images")
    assert read_pairs(tmp_path / "images") == [Pair("a", "b", "c")]
    with pytest.raises(Exception):  # noqa: B017, whatever datasets raises where it decodes the image
        next(iter(datasets.load_from_disk(tmp_path / "images")))
    state = json.loads((tmp_path / "images" / "state.json").read_text())
    (tmp_path / "images" / "state.json").write_text(json.dumps(state | {"_format_type": "torch"}))
    assert read_pairs(tmp_path / "images") == [Pair("a", "b", "c")]
    features = datasets.Features({"prompt": datasets.Image(), "chosen": datasets.Value("string")})
    rows = [{"prompt": image, "chosen": "b"}]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "other")
    with pytest.raises(FlagError, match="'prompt' must be strings, but is Image"):
        read_pairs(tmp_path / "other")
    nul = datasets.Dataset.from_list([{"prompt": "a\0", "chosen": "b", "rejected": "c"}])
    nul.save_to_disk(tmp_path / "nul")
    with pytest.raises(FlagError, match="row 0: a NUL character"):
        read_pairs(tmp_path / "nul")
    (tmp_path / "nul" / "state.json").write_text("{}")
    with pytest.raises(FlagError, match="is not a folder written by datasets' save_to_disk"):
        read_pairs(tmp_path / "nul")
