"""Prompts: the files that hold them, and conversations, which a chat template writes as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from agents.sampling import collect, new_generator
from tests.helpers.models import drifted, model, tokenizer
from tests.helpers.tasks import letter_values, words, zero
from tests.helpers.tokenizers import byte_level
from textenv import TextMDP, WordTokenizer
from textenv.data import load_prompts
from textenv.testing import play


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "not valid JSON"),
        ('{"text": "a"}', "object with the string field 'prompt'"),
        ('{"prompt": 3}', "object with the string field 'prompt'"),
        ('["a"]', "object with the string field 'prompt'"),
    ],
)
def test_a_broken_line_is_named_with_its_file(tmp_path: Path, line: str, message: str) -> None:
    """The error names file, line number and content; without the broken line the file is accepted."""
    path = tmp_path / "prompts.jsonl"
    good = '{"prompt": "a"}\n\n{"prompt": "b a"}\n'
    path.write_text(good + line + "\n")
    with pytest.raises(ValueError, match=rf"prompts\.jsonl:4: .*{message}") as error:
        TextMDP(**words(prompts=path))
    assert repr(line)[1:-1] in str(error.value)
    path.write_text(good)
    assert TextMDP(**words(prompts=str(path))).prompts.texts == ["a", "b a"]
    (tmp_path / "prompts.txt").write_text("a\n\n  b a \n")
    assert TextMDP(**words(prompts=tmp_path / "prompts.txt")).prompts.texts == ["a", "b a"]


def test_a_missing_or_empty_prompt_file(tmp_path: Path) -> None:
    """The error names a file that does not exist, and one without a prompt."""
    with pytest.raises(ValueError, match=r"The file '.*nowhere\.txt' does not exist"):
        TextMDP(**words(prompts=str(tmp_path / "nowhere.txt")))
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"at least one prompt, got none from '.*empty\.txt'"):
        TextMDP(**words(prompts=tmp_path / "empty.txt"))


def test_encodings_of_prompt_files(tmp_path: Path) -> None:
    """A byte-order mark is no word, U+2028 ends no line, another encoding than UTF-8 is an error with the file name."""
    (tmp_path / "a.txt").write_bytes("\ufeffa b\nb\n".encode())
    assert TextMDP(**words(prompts=tmp_path / "a.txt")).prompts.texts == ["a b", "b"]
    (tmp_path / "b.jsonl").write_text('{"prompt": "a\u2028b"}\n', encoding="utf-8")
    assert TextMDP(**words(prompts=tmp_path / "b.jsonl")).prompts.texts == ["a\u2028b"]
    (tmp_path / "c.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.txt: not UTF-8 .* save it as UTF-8"):
        TextMDP(**words(prompts=tmp_path / "c.txt"))


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("p.txt", "a\0b", "a NUL character"),
        ("p.txt", "a\ufeffb", "a byte-order mark"),
        ("p.jsonl", '{"prompt": "a\\u0000"}', "a NUL character"),
        ("p.jsonl", '{"prompt": "a\\ufeff"}', "a byte-order mark"),
        ("p.jsonl", '{"prompt": "a", "fact": [{"x": "\\u0000"}]}', "a NUL character"),
        ("p.jsonl", '{"prompt": "a", "x\\u0000": 1}', "a NUL character"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "not valid JSON .*'prompt' occurs twice"),
        ("p.jsonl", '{"prompt": "a", "fact": {"b": 1, "c": 2, "b": 1}}', "not valid JSON .*'b' occurs twice"),
    ],
)
def test_invisible_characters_and_keys_that_occur_twice(tmp_path: Path, name: str, line: str, message: str) -> None:
    """They are refused with file and line, written plainly or as an escape."""
    path = tmp_path / name
    path.write_text("\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{name}:2: {message}"):
        TextMDP(**words(prompts=path))


def test_invisible_characters_in_a_list_and_in_reset() -> None:
    """The same characters in prompts that are no file."""
    with pytest.raises(ValueError, match="prompt 1: a NUL character"):
        TextMDP(**words(prompts=["a", "b\0"], tokenizer=WordTokenizer(["a", "b", "b\0"])))
    mdp = TextMDP(**words(tokenizer=WordTokenizer(["a", "b", "c", "\ufeff"])))
    with pytest.raises(ValueError, match="the prompt: a byte-order mark"):
        mdp.make_state("a \ufeff")


TEMPLATE = "{% for m in messages %}{% if m.role == 'system' %}c {% elif m.role == 'user' %}<p> {% else %}b {% endif %}"
TEMPLATE += "{{ m.content }} {% endfor %}{% if add_generation_prompt %}b{% endif %}"
CHATS = [
    [{"role": "user", "content": "a a"}],
    [{"role": "system", "content": "c"}, {"role": "user", "content": "b"}],
]


def chat_task(prompts: Any, reward: Any = letter_values, template: str | None = TEMPLATE) -> Any:
    """Conversations as prompts."""
    chat_tokenizer = tokenizer("pad")
    chat_tokenizer.chat_template = template
    return gym.make(
        "textenv/Text-v0",
        tokenizer=chat_tokenizer,
        prompts=prompts,
        reward=reward,
        reference=model("qwen2"),
        max_new_tokens=5,
    )


@pytest.mark.parametrize("form", ["list", "prompt", "messages", "jsonl"])
def test_a_conversation_is_a_prompt(form: str, tmp_path: Path) -> None:
    """In each form it is the chat template's output up to the assistant's turn; rewards get the messages."""
    received: list[Any] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any) -> list[float]:
        received.extend(prompts)
        return [float(len(each)) for each in prompts]

    rows: Any = [{form: chat} for chat in CHATS]
    if form == "list":
        rows = CHATS
    elif form == "jsonl":
        rows = tmp_path / "chats.jsonl"
        rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    env = chat_task(rows, reward)
    assert env.unwrapped.prompts == ["<p> a a b", "c c <p> b b"]
    chat_tokenizer = env.unwrapped.mdp.tokenizer
    for i, chat in enumerate(CHATS):
        observation, _ = env.reset(options={"prompt": i})
        ids = chat_tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert observation["input_ids"][observation["attention_mask"] == 1].tolist() == ids
        again, _ = env.reset(options={"prompt": chat})
        assert np.array_equal(again["input_ids"], observation["input_ids"])
    rollout = collect(env, drifted(env), 8, generator=new_generator("cpu", 0))
    assert set(rollout.scores.tolist()) == {1.0, 2.0}
    assert len(received) == 8 and all(prompt in CHATS for prompt in received)
    own, _ = env.reset(options={"prompt": [{"role": "user", "content": "c"}]})
    assert own["input_ids"][own["attention_mask"] == 1].tolist() == chat_tokenizer.encode("<p> c b")


def test_bad_conversations_are_refused() -> None:
    """No template, a template that raises, messages without a role: the error names the prompt and the reason."""
    with pytest.raises(ValueError, match="prompt 0: messages need a tokenizer with a chat template"):
        chat_task(CHATS, template=None)
    with pytest.raises(ValueError, match="prompt 0: the chat template refuses .*no system"):
        chat_task(CHATS[1:], template="{{ raise_exception('no system') }}")
    with pytest.raises(ValueError, match="prompt 1: a prompt must be a string, or messages with the strings role"):
        chat_task(["a", [{"role": "user"}]])
    with pytest.raises(ValueError, match="prompt 1: must have the field 'prompt' and the first one's fields"):
        chat_task([{"messages": CHATS[0]}, {"prompt": "a"}])


def test_the_text_of_ids_has_no_special_tokens() -> None:
    """Of a prompt that is given as ids and is not in the list; the ids themselves are kept."""
    tokenizer = byte_level()
    env = gym.make(
        "textenv/Text-v0", tokenizer=tokenizer, prompts=["hello"], reward=zero, max_new_tokens=1, max_prompt_length=9
    )
    ids = tokenizer.encode("world")
    assert ids[0] == tokenizer.bos_token_id
    observation, _ = env.reset(options={"prompt": ids})
    assert observation["input_ids"][observation["attention_mask"] == 1].tolist() == ids
    assert play(env, ids, [1]).prompt == "world"


@pytest.mark.parametrize(
    "columns", [{}, {"train": ["a"]}, {"prompt": "a"}, {"prompt": ["a", "b"], "fact": ["c"]}, {"prompt": ["a", "a", 7]}]
)
def test_an_error_in_columns_says_that_it_is_in_the_prompts(columns: dict[str, Any]) -> None:
    """No such column, one that is no list, two of different lengths; and the row of a value that is no prompt."""
    place = "prompts, prompt 2: " if len(columns.get("prompt", "")) == 3 else "prompts: "
    with pytest.raises(ValueError, match=f"^{place}"):
        load_prompts(columns, WordTokenizer(["a", "b"]))
    assert load_prompts({"prompt": ["a", "b"], "fact": [1, 2]}, WordTokenizer(["a", "b"])).texts == ["a", "b"]
