"""The table in textenv/README.md: what is supported as prompts. Each of its rows is a test here, named as the row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from tests.helpers.paths import ROOT
from tests.helpers.tasks import zero
from tests.helpers.tokenizers import byte_level
from textenv import TextMDP, WordTokenizer
from textenv.data import messages_of

TABLE = (ROOT / "textenv" / "README.md").read_text(encoding="utf-8").split("\n## Prompts\n")[1].split("\n## ")[0]
ROWS = re.findall(r"^\| (.+?) \| (.+?) \|$", TABLE, flags=re.MULTILINE)
USER, CHATTED = {"role": "user", "content": "hello"}, {"role": "user", "content": "world"}
OPENING = "<s><|user|>user: hello<|end|><|user|>assistant: "
MAPPINGS = [{"prompt": "hello", "answer": 1}, {"prompt": "hello world", "answer": 2}]
TEXTS = ["hello", "hello world"]
CASES: dict[str, Callable[[Path], None]] = {}


def row(*names: str) -> Any:
    """Names the rows of the table that a case tests."""

    def register(case: Callable[[Path], None]) -> Callable[[Path], None]:
        for name in names:
            CASES[name] = case
        return case

    return register


def mdp(prompts: Any, **arguments: Any) -> TextMDP:
    """The task with these prompts."""
    return TextMDP(**{"tokenizer": byte_level(), "prompts": prompts, "reward": zero, "max_new_tokens": 2} | arguments)


def check_texts(prompts: Any, columns: Any = ()) -> None:
    """The prompts are `TEXTS`, with these columns."""
    loaded = mdp(prompts).prompts
    assert loaded.texts == TEXTS and loaded.columns == dict(columns)


def check_refused(message: str, prompts: Any, **arguments: Any) -> None:
    """The prompts raise one line with this message."""
    with pytest.raises(ValueError, match=message) as error:
        mdp(prompts, **arguments)
    assert "\n" not in str(error.value)


def check_mappings(prompts: Any) -> None:
    """The prompts are `TEXTS`, with the answers of `MAPPINGS`."""
    check_texts(prompts, {"answer": [1, 2]})


def write(path: Path, text: str) -> Path:
    """A file with this text."""
    path.write_text(text, encoding="utf-8")
    return path


@row("list of texts")
def list_of_texts(folder: Path) -> None:
    check_texts(TEXTS)
    check_texts(tuple(TEXTS))


@row("list of conversations")
def list_of_conversations(folder: Path) -> None:
    chats = [[USER], [{"role": "system", "content": "x"}, USER, {"role": "assistant", "content": "y"}, CHATTED]]
    texts = mdp(chats).prompts.texts
    assert texts[0] == OPENING and [messages_of(text) for text in texts] == chats
    assert texts[1] == OPENING.replace("user: hello", "system: x<|end|><|user|>user: hello").replace(
        "assistant: ", "assistant: y<|end|><|user|>user: world<|end|><|user|>assistant: "
    )


@row("list of mappings")
def list_of_mappings(folder: Path) -> None:
    check_mappings(MAPPINGS)
    assert mdp([{"prompt": [USER], "answer": 3}]).prompts.columns == {"answer": [3]}
    check_refused("prompt 1: .*first one's fields", [*MAPPINGS[:1], {"prompt": "x"}])


@row("`messages` without `prompt`")
def messages_alone(folder: Path) -> None:
    prompts = mdp([{"messages": [USER], "answer": 3}]).prompts
    assert prompts.texts == [OPENING] and messages_of(prompts.texts[0]) == [USER]
    assert prompts.columns_of([0]) == {"answer": [3]}


@row("`messages` beside `prompt`")
def messages_beside(folder: Path) -> None:
    data = [[USER, {"role": "assistant", "content": "world"}]]
    for fields in ({"prompt": "hello", "messages": data[0]}, {"messages": data[0], "prompt": "hello"}):
        prompts = mdp([fields]).prompts
        assert prompts.texts == ["hello"] and prompts.columns_of([0]) == {"messages": data}


@row("texts and conversations together")
def together(folder: Path) -> None:
    check_refused("prompt 1: prompts must be all texts or all conversations.*write a text as", ["hello", [USER]])


@row("images, tool calls")
def no_text(folder: Path) -> None:
    for extra in ({"content": [{"type": "image"}]}, {"content": None, "tool_calls": [{}]}):
        check_refused("images and tool calls are not supported", [[USER, {"role": "assistant", **extra}]])
    for message in ({"role": "assistant", "content": "", "tool_calls": [{}]}, {"role": "tool", "content": "42"}):
        check_refused("no tool calls and no results of tools", [[USER, message]])


@row("generator")
def generator(folder: Path) -> None:
    check_mappings(each for each in MAPPINGS)
    check_texts(iter(TEXTS))
    check_refused("pass what it returns", lambda: TEXTS)


@row("columns")
def columns(folder: Path) -> None:
    check_mappings({"prompt": TEXTS, "answer": (1, 2)})
    check_texts({"prompt": np.array(TEXTS)})
    check_refused("same length, got .*'answer': 1", {"prompt": TEXTS, "answer": [1]})
    check_refused("'prompt' must be a list", {"prompt": "hello"})


@row("`Dataset`, `IterableDataset`")
def data_sets(folder: Path) -> None:
    data = pytest.importorskip("datasets").Dataset.from_list(MAPPINGS)
    for each in (data, data.with_format("numpy"), data.to_iterable_dataset(), data.select([0, 1])):
        check_mappings(each)
    check_texts(data["prompt"])


def test_a_data_set_of_torch_has_as_many_rows_as_it_says() -> None:
    """It has a length and rows by number, and is no iterable: without its length it would never end."""

    class Endless:
        def __len__(self) -> int:
            return len(MAPPINGS)

        def __getitem__(self, index: int) -> Any:
            return MAPPINGS[index % len(MAPPINGS)]

    check_mappings(Endless())


@row("`DatasetDict`, a mapping of splits")
def splits(folder: Path) -> None:
    check_refused(r"prompts=data\['train'\]", {"train": MAPPINGS, "test": MAPPINGS})
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(MAPPINGS)
    check_refused(r"prompts=data\['test'\]", datasets.DatasetDict(test=data))
    check_refused(r"prompts=data\['test'\]", datasets.IterableDatasetDict(test=data.to_iterable_dataset()))


@row("data frame, table, column")
def tables(folder: Path) -> None:
    class Frame:  # as Polars has it
        columns = ("prompt", "answer")

        def to_dicts(self) -> list[Any]:
            return MAPPINGS

    check_mappings(Frame())
    check_texts(np.array(TEXTS))
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    check_mappings(pandas.DataFrame(MAPPINGS))
    check_mappings(pandas.DataFrame(MAPPINGS, index=["x", "y"]))
    check_mappings(arrow.Table.from_pylist(MAPPINGS))
    for column in (pandas.Series(TEXTS), arrow.array(TEXTS), arrow.chunked_array([TEXTS])):
        check_texts(column)
    check_refused("name of its own", pandas.DataFrame([TEXTS], columns=["prompt", "prompt"]))


@row("one text")
def one_text(folder: Path) -> None:
    check_texts(str(write(folder / "p.txt", "\n".join(TEXTS))))
    check_refused(r"does not exist; pass prompts themselves as a list", "hello world")


@row("set")
def no_order(folder: Path) -> None:
    check_refused(r"a set has no order: pass sorted\(prompts\)", {"hello"})
    check_texts(dict.fromkeys(TEXTS).keys())


@row("`.txt`")
def plain_text(folder: Path) -> None:
    check_texts(write(folder / "p.txt", "hello\n\n hello world \n"))
    for text in (json.dumps(MAPPINGS), "\n".join(map(json.dumps, MAPPINGS)), json.dumps(TEXTS, indent=1)):
        check_refused("plain text, got JSON.*rename the file", write(folder / "p.txt", text))


@row("`.jsonl`, `.ndjson`, `.json`")
def json_files(folder: Path) -> None:
    for name in ("p.jsonl", "p.ndjson", "p.json", "p.JSON"):
        for text in ("\n".join(map(json.dumps, MAPPINGS)), json.dumps(MAPPINGS), json.dumps(MAPPINGS, indent=2)):
            check_mappings(write(folder / name, text))
        check_mappings(write(folder / name, json.dumps({"prompt": TEXTS, "answer": [1, 2]})))
        check_texts(write(folder / name, json.dumps(TEXTS)))
        check_refused(r"prompts=data\['train'\]", write(folder / name, json.dumps({"train": MAPPINGS})))


@row("`.csv`")
def csv_file(folder: Path) -> None:
    check_texts(write(folder / "p.csv", "answer,prompt\n1,hello\n2,hello world\n"), {"answer": ["1", "2"]})
    check_refused("p.csv:1: .*'prompt' among them", write(folder / "p.csv", "text\nhello\n"))


@row("`.parquet`")
def parquet_file(folder: Path) -> None:
    arrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files.write_table(arrow.Table.from_pylist(MAPPINGS), folder / "p.parquet")
    check_mappings(folder / "p.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name, package=None: None)
        check_refused("pip install pyarrow", folder / "p.parquet")


@row("any other file, a folder")
def other_files(folder: Path) -> None:
    for name in ("p.xlsx", "p.arrow", "p.jsonl.gz", "p.tsv", "p"):
        check_refused("must end in one of .txt, .jsonl", write(folder / name, "hello"))
    check_refused("got the folder", folder)


@row("a field named as an argument of rewards")
def reserved(folder: Path) -> None:
    for name in ("prompts", "completions", "completion_ids", "self", "cls", "trainer_state", "log_extra", "log_metric"):
        check_refused(f"the name '{name}' is an argument of rewards", [{"prompt": "hello", name: 1}])
    check_refused("the name 3 must be a string", [{"prompt": "hello", 3: 1}])


@row("last message of the assistant")
def continued(folder: Path) -> None:
    assert mdp([[USER, {"role": "assistant", "content": "wor"}]]).prompts.texts == [OPENING + "wor"]


@row("template arguments")
def template_arguments(folder: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = "{{ messages[0].content }}{% if enable_thinking is false %}<end>{% endif %}"
    off = {"enable_thinking": False}
    assert mdp([[USER]], tokenizer=tokenizer).prompts.texts == ["hello"]
    assert mdp([[USER]], tokenizer=tokenizer, chat_template_kwargs=off).prompts.texts == ["hello<end>"]
    rows = [{"prompt": [USER], "chat_template_kwargs": off}]
    assert mdp(rows, tokenizer=tokenizer).prompts.texts == ["hello<end>"]


@row("conversation given to `reset`")
def given_to_reset(folder: Path) -> None:
    task = mdp([{"prompt": [USER], "answer": 3}], max_prompt_length=50)
    for chat, answer in (([USER], 3), ([CHATTED], None)):
        state = task.make_state(chat)
        assert task.prompts.columns_of(state.prompt.tolist()) == {"answer": [answer]}
        assert messages_of(state.prompt_text[0]) == chat


@row("special token typed in a text")
def typed(folder: Path) -> None:
    with pytest.warns(UserWarning, match="ordinary text"):
        assert byte_level().eos_token_id not in mdp(["hello </s>"]).prompts.input_ids


@row("tokenizer that appends")
def appends(folder: Path) -> None:
    class Appends(WordTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return super().encode(text) + [0] * add_special_tokens

    assert mdp(["hello world"], tokenizer=Appends("hello world")).prompts.input_ids.tolist() == [[1, 2]]


@row("tokenizer with holes")
def holes(folder: Path) -> None:
    class Holes(WordTokenizer):
        def get_vocab(self) -> dict[str, int]:
            return {"<eos>": 0, "hello": 1, "world": 7}

    task = mdp(["hello"], tokenizer=Holes("hello world"))
    assert task.vocab_size == 8 and task.decode([1, 4, 0]) == "hello"


@row("tokenizer by path")
def by_path(folder: Path) -> None:
    byte_level().save_pretrained(folder / "saved")
    for path in (folder / "saved", str(folder / "saved")):
        assert mdp(TEXTS, tokenizer=path).prompts.input_ids.tolist() == mdp(TEXTS).prompts.input_ids.tolist()
    check_refused("There is nothing to load at '.*nowhere'", TEXTS, tokenizer=str(folder / "nowhere"))


@row("tokenizer of another size than the model's")
def another_size(folder: Path) -> None:
    size = len(byte_level())

    def model(vocabulary: int) -> Any:
        return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=1, n_positions=32))

    for vocabulary in (size, size + 8):
        assert mdp(TEXTS, reference=model(vocabulary), eos_token_id=0).vocab_size == size
    for vocabulary in (size - 1, size + 1000):
        check_refused("must be the same", TEXTS, reference=model(vocabulary), eos_token_id=0)


@row('`eos_token_id="</s>"`')
def end_tokens(folder: Path) -> None:
    end, other = byte_level().convert_tokens_to_ids(["</s>", "<|end|>"])
    for given, expected in (("</s>", [end]), (["</s>", "<|end|>"], [end, other]), ([other, "</s>"], [other, end])):
        assert mdp(TEXTS, eos_token_id=given).eos_token_ids == expected
    check_refused("has no token '</e>'", TEXTS, eos_token_id="</e>")


@pytest.mark.parametrize("name", [name for name, _ in ROWS if name not in ("prompts", "---")])
def test_every_row_of_the_table_is_true(name: str, tmp_path: Path) -> None:
    """A row without a case fails here."""
    CASES[name](tmp_path)


def test_the_table_has_a_row_for_every_case() -> None:
    """And it was found."""
    names = [name for name, _ in ROWS]
    assert len(set(names)) == len(names) > 20 and CASES.keys() <= set(names)
