"""Preference pairs: files, splits, and invalid lines."""

from __future__ import annotations

import json
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
        ('{"prompt": "a", "chosen": "b ", "rejected": " b"}', ":2: chosen and rejected are the same, 'b '"),
        ("[" * 100_000, ":2: not valid JSON"),
        ('["a", "b"]', ":2: must be an object"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}', ":2: .*'chosen' occurs twice"),
        ('{"prompt": "a", "chosen": "b\\u0000", "rejected": "c"}', ":2: a NUL character"),
        ('{"prompt": "a", "chosen": "b\ufeff", "rejected": "c"}', ":2: a byte-order mark"),
        ('{"prompt": "a", "chosen": " ", "rejected": "c"}', ":2: the completion 'chosen' is empty"),
        ('{"prompt": "a", "chosen": "c", "rejected": "c"}', ":2: chosen and rejected are the same, 'c'"),
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
    with pytest.raises(FlagError, match="no split 'train', only test"):
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
