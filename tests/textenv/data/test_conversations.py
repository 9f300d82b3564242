"""Conversations: what the chat template is given, what the policy continues, and what rewards get."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from agents.sampling import collect, new_generator
from tests.helpers.models import drifted
from tests.helpers.tokenizers import byte_level
from textenv import TextMDP, WordTokenizer
from textenv.data import (
    ConversationText,
    check_template_arguments,
    encode_chat,
    load_prompts,
    messages_of,
    with_completion,
)
from textenv.testing import play

USER = {"role": "user", "content": "hello"}
TURNS = [
    {"role": "system", "content": "You are a world."},
    USER,
    {"role": "assistant", "content": "hello, user"},
    {"role": "user", "content": "world?"},
]
BEGUN = [USER, {"role": "assistant", "content": "The world is "}]
THINKING = (
    "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}"
)
THINKING += "<|user|>assistant: {% if enable_thinking is defined and enable_thinking is false %}<think></think>"
THINKING += "{% endif %}{% endif %}"


def task(prompts: Any, received: list[Any] | None = None, template: str | None = None, **arguments: Any) -> Any:
    """Text-v0 on conversations; `received` gets the prompt of each completion, the completion's type, its columns."""
    received = [] if received is None else received
    tokenizer = byte_level()
    tokenizer.chat_template = template or tokenizer.chat_template

    def reward(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        fields = {name: column for name, column in columns.items() if isinstance(column, list)}
        for i in range(len(prompts)):
            received.append((prompts[i], type(completions[i]), {name: values[i] for name, values in fields.items()}))
        return [0.0] * len(prompts)

    return gym.make(
        "textenv/Text-v0", tokenizer=tokenizer, prompts=prompts, reward=reward, max_new_tokens=2, max_prompt_length=99,
        **arguments,
    )  # fmt: skip


def ids_of(env: Any, prompt: Any) -> list[int]:
    """The prompt's ids in the observation after a reset to it."""
    observation, _ = env.reset(seed=0, options={"prompt": prompt})
    return observation["input_ids"][observation["attention_mask"] == 1].tolist()


@pytest.mark.parametrize("begun", ["The world is ", "The world is", "", "</s> hello", "hello\n\n"])
@pytest.mark.parametrize("before", [[USER], TURNS, [TURNS[0], USER]])
def test_the_beginning_of_an_assistants_turn_is_continued(before: list[Any], begun: str) -> None:
    """The prompt ends with the last character of that turn: nothing closes it, and no other turn begins."""
    chat = [*before, {"role": "assistant", "content": begun}]
    tokenizer = byte_level()
    text = encode_chat(chat, tokenizer, complete=False).text
    opened = encode_chat(before, tokenizer, complete=False)
    assert text == opened.text + begun and text.endswith("assistant: " + begun)
    closed = encode_chat(
        chat, tokenizer, template={"add_generation_prompt": True}
    ).text  # control: what it was taken for
    assert closed.startswith(text + "<|end|>") and closed.endswith("assistant: ")
    with pytest.warns(UserWarning) if "</s>" in begun else nullcontext():
        prompts = load_prompts([chat], tokenizer)
    assert prompts.texts == [text] and tokenizer.decode(prompts.input_ids[0]) == text
    assert tokenizer.convert_tokens_to_ids("<|end|>") not in prompts.input_ids[0][len(opened.ids) :]


@pytest.mark.parametrize("chat", [[USER], TURNS, TURNS[:2], [*TURNS, {"role": "developer", "content": "42"}]])
def test_another_last_message_begins_the_assistants_turn(chat: list[Any]) -> None:
    """System prompts and several turns: the text is the template's, up to the assistant's next turn."""
    tokenizer = byte_level()
    prompts = load_prompts([chat], tokenizer)
    expected = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert prompts.input_ids[0].tolist() == expected


def test_the_template_may_refuse_to_continue() -> None:
    """One that drops or changes the beginning: the error names the prompt."""
    for content in ("{{ m.content | upper }}", "{{ m.role }}"):
        tokenizer = byte_level()
        tokenizer.chat_template = "{% for m in messages %}" + content + "<|end|>{% endfor %}"
        load_prompts([[USER]], tokenizer)
        with pytest.raises(ValueError, match="prompt 1: the chat template refuses"):
            load_prompts([[USER], BEGUN], tokenizer)


@pytest.mark.parametrize("order", [("prompt", "messages"), ("messages", "prompt")])
@pytest.mark.parametrize("prompt", ["hello", [USER]])
def test_messages_beside_a_prompt_are_data(order: tuple[str, str], prompt: Any) -> None:
    """The prompt is "prompt", whatever the order of the keys; rewards get the other field as it is."""
    received: list[Any] = []
    answered = [[*TURNS, {"role": "assistant", "content": "yes"}], [USER]]
    rows = [{"prompt": prompt, "messages": answered[0]}, {"prompt": prompt, "messages": answered[1]}]
    env = task([{name: row[name] for name in order} for row in rows], received)
    alone = task([prompt, prompt])
    assert env.unwrapped.prompts == alone.unwrapped.prompts
    for i in range(2):
        assert ids_of(env, i) == ids_of(alone, i)
        play(env, i, [1, 1])
        assert received[-1][2]["messages"] == answered[i]
    play(env, [{"role": "user", "content": "world"}], [1, 1])
    assert received[-1][2]["messages"] is None  # it is no field of a prompt that is not in the list


FORMS: dict[str, Callable[[list[Any], Path], Any]] = {
    "list": lambda chats, folder: chats,
    "prompt": lambda chats, folder: [{"prompt": chat} for chat in chats],
    "messages": lambda chats, folder: [{"messages": chat} for chat in chats],
    "columns": lambda chats, folder: {"prompt": chats},
    "json": lambda chats, folder: written(folder / "p.json", json.dumps([{"prompt": chat} for chat in chats])),
    "lines": lambda chats, folder: written(folder / "p.jsonl", "\n".join(map(json.dumps, chats))),
    "data set": lambda chats, folder: pytest.importorskip("datasets").Dataset.from_dict({"prompt": chats}),
    "data frame": lambda chats, folder: pytest.importorskip("pandas").DataFrame({"messages": chats}),
    "parquet": lambda chats, folder: parquet(folder / "p.parquet", chats),
    "prompts of another": lambda chats, folder: task(chats).unwrapped.prompts,
}


def written(path: Path, text: str) -> Path:
    """A file with this text."""
    path.write_text(text, encoding="utf-8")
    return path


def parquet(path: Path, chats: list[Any]) -> Path:
    """A Parquet file, in which each message has the fields of all."""
    arrow, file = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file.write_table(arrow.table({"prompt": chats}), path)
    return path


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_conversation_is_scored_alike_wherever_it_came_from(form: str, tmp_path: Path) -> None:
    """In the list in any form, by index or again, or first in `reset`: the same ids, text, messages and arguments."""
    chats = [[USER], [{**TURNS[0], "name": "system"}, *TURNS[1:]], BEGUN]
    received: list[Any] = []
    listed, other = task(FORMS[form](chats, tmp_path), received), task([[{"role": "user", "content": "x"}]], received)
    for i, chat in enumerate(chats):
        seen, scored = [], []
        text = listed.unwrapped.prompts[i]
        given = [(listed, i), (listed, chat), (listed, ids_of(listed, i)), (other, chat), (other, text)]
        for env, prompt in [*given, (listed, np.array(ids_of(listed, i))), (other, tuple(chat))]:
            seen.append(ids_of(env, prompt))
            episode = play(env, prompt, [1, 1])
            assert episode.prompt == text
            scored.append(received[-1])
        assert all(each == seen[0] for each in seen) and all(each == scored[0] for each in scored)
        assert scored[0][0] == chat
    text = "hello"
    play(other, text, [1, 1])
    assert received[-1][0] == text  # control: a text is no conversation


def test_collected_completions_carry_their_messages() -> None:
    """Training hands rewards the same messages."""
    received: list[Any] = []
    size = {"vocab_size": len(byte_level()), "n_positions": 128, "n_embd": 8, "n_layer": 1, "n_head": 1}
    env = task([[USER], TURNS], received, reference=GPT2LMHeadModel(GPT2Config(**size, eos_token_id=0)))
    collect(env, drifted(env), 8, generator=new_generator("cpu", 0))
    assert len(received) == 8 and all(prompt in ([USER], TURNS) for prompt, _, _ in received)


def test_rewards_cannot_change_the_prompts() -> None:
    """Messages are copied for every call."""

    def greedy(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        lengths = [float(len(each)) for each in prompts]
        for each in prompts:
            each[0]["content"] = "changed"
            each.append(USER)
        return lengths

    env = gym.make("textenv/Text-v0", tokenizer=byte_level(), prompts=[[USER]], reward=greedy, max_new_tokens=1)
    assert [play(env, 0, [1]).score for _ in range(3)] == [1.0] * 3
    assert messages_of(env.unwrapped.prompts[0]) == [USER]


def test_copies_of_the_text_keep_the_messages() -> None:
    """Copied, pickled, in arrays; as JSON it is a text."""
    text = ConversationText("hello", TURNS)
    for each in (copy.copy(text), copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert each == text == "hello" and messages_of(each) == TURNS
    assert messages_of(np.array([text], dtype=object).copy().tolist()[0]) == TURNS
    assert json.dumps([text]) == '["hello"]' and messages_of("hello") is None


def test_a_completion_continues_or_follows() -> None:
    """The whole conversation has one assistant's turn at its end."""
    assert with_completion([USER], "yes") == [USER, {"role": "assistant", "content": "yes"}]
    assert with_completion(BEGUN, "round") == [USER, {"role": "assistant", "content": "The world is round"}]
    assert BEGUN[-1]["content"] == "The world is "


def test_arguments_of_a_thinking_template(tmp_path: Path) -> None:
    """For all conversations, those of `reset` too, or row by row; a row's own come first."""
    off = {"enable_thinking": False}
    thinking, plain = (task([[USER]], template=THINKING, chat_template_kwargs=k).unwrapped for k in (None, off))
    assert not thinking.prompts[0].endswith("<think></think>") and plain.prompts[0].endswith("<think></think>")
    assert plain.prompts[0] == thinking.prompts[0] + "<think></think>"
    other = [{"role": "user", "content": "world"}]
    plain.reset(options={"prompt": other})
    assert str(plain.episodes.state.prompt_text[0]).endswith("world<|end|><|user|>assistant: <think></think>")
    rows = [{"prompt": [USER], "chat_template_kwargs": each} for each in ({"enable_thinking": True}, None, off)]
    received: list[Any] = []
    mixed = task(rows, received, template=THINKING, chat_template_kwargs=off)
    assert mixed.unwrapped.prompts == [thinking.prompts[0], plain.prompts[0], plain.prompts[0]]
    play(mixed, 2, [1, 1])
    assert received[-1][2]["chat_template_kwargs"] == off  # as TRL, which hands over every column
    for wrong, message in (("no", "must be a mapping"), ({3: 1}, "must have strings as names, got 3")):
        check_refused_arguments(wrong, message)


def check_refused_arguments(arguments: Any, message: str) -> None:
    """Arguments of the template are refused in one line: those of the task, of its rows, and of `load_prompts`."""
    tokenizer, rows = byte_level(), [{"prompt": [USER], "chat_template_kwargs": arguments}]
    for place, refused in {
        "": lambda: task([[USER]], chat_template_kwargs=arguments),
        "prompt 0: ": lambda: task(rows),
        "(?:)": lambda: load_prompts([[USER]], tokenizer, chat_template_kwargs=arguments),
    }.items():
        with pytest.raises(ValueError, match=f"^{place}chat_template_kwargs {message}") as error:
            refused()
        assert "\n" not in str(error.value)


PASSED_ON = {"tools", "documents"}  # what apply_chat_template hands to the template
TAKEN = inspect.signature(byte_level().apply_chat_template).parameters.keys() - {"kwargs"} - PASSED_ON


@pytest.mark.parametrize("name", sorted({*TAKEN, "self", "messages", "conversations"}))
def test_what_the_tokenizer_takes_is_no_argument_of_the_template(name: str) -> None:
    """Each is refused by its name: one would truncate the ids, and another would be given twice."""
    message = f"must have names other than the arguments of apply_chat_template itself, got '{name}'"
    check_refused_arguments({"enable_thinking": False, name: 3}, message)
    rows = [{"prompt": [USER], "chat_template_kwargs": {name: None}}]  # as a table has it
    assert task(rows).unwrapped.prompts == task([[USER]], chat_template_kwargs={name: None}).unwrapped.prompts


@pytest.mark.parametrize("name", sorted({*inspect.signature(encode_chat).parameters, "kwargs"} - {*TAKEN, "messages"}))
def test_names_of_ours_are_variables_of_a_template(name: str) -> None:
    """Parameters of the library's own functions cannot clash with them."""
    template, value = f"{{{{ messages[0].content }}}} {{{{ {name} }}}}", {name: "x"}
    assert task([[USER]], template=template, chat_template_kwargs=value).unwrapped.prompts == ["hello x"]
    rows = [{"prompt": [USER], "chat_template_kwargs": value}]
    assert task(rows, template=template).unwrapped.prompts == ["hello x"]


@pytest.mark.parametrize("name", sorted(PASSED_ON))
def test_tools_and_documents_are_variables_of_a_template(name: str) -> None:
    """apply_chat_template hands them on."""
    template = f"{{{{ messages[0].content }}}} {{{{ {name}[0].title }}}}"
    env = task([[USER]], template=template, chat_template_kwargs={name: [{"title": "x"}]})
    assert env.unwrapped.prompts == ["hello x"]


def test_a_tokenizer_of_another_kind_takes_other_arguments() -> None:
    """They are read from the tokenizer that is given."""

    class Other(WordTokenizer):
        chat_template = "x"

        def apply_chat_template(self, messages: Any, *, tokenize: bool, add_generation_prompt: bool, mode: int) -> str:
            return str(messages[0]["content"])

    tokenizer = Other("hello")
    with pytest.raises(ValueError, match="got 'mode'"):
        load_prompts([[USER]], tokenizer, chat_template_kwargs={"mode": 1})
    assert check_template_arguments({"mode": 1}) == {"mode": 1}  # control
    assert load_prompts(["hello"], WordTokenizer("hello"), chat_template_kwargs={"mode": 1}).texts == ["hello"]


@pytest.mark.parametrize("text_first", [True, False])
def test_texts_and_conversations_in_one_list_are_refused(text_first: bool) -> None:
    """The message says which row is of which kind, and how to write a text as a conversation."""
    both: list[Any] = ["hello", [USER]][:: 1 if text_first else -1]
    kinds = "a conversation after a text" if text_first else "a text after a conversation"
    for prompts in (both, [{"prompt": each} for each in both]):
        with pytest.raises(ValueError, match=rf"prompt 1: .*all texts or all conversations, got {kinds} \(prompt 0\)"):
            task(prompts)
    with pytest.raises(ValueError, match="a conversation must be in a list of its own"):
        task([USER])


ROWS: dict[str, Any] = {
    "a text": "hello",
    "a conversation": [USER],
    "a mapping": {"prompt": "hello"},
    "a mapping of a conversation": {"messages": [USER]},
}


@pytest.mark.parametrize(
    ("first", "second"),
    [pair for pair in itertools.permutations(ROWS, 2) if len({"mapping" in name for name in pair}) == 2],
)
def test_mappings_and_other_prompts_in_one_list_are_refused(first: str, second: str) -> None:
    """The message says that kinds are mixed, and names both; it is no matter of fields."""
    names = [name.removesuffix(" of a conversation") for name in (first, second)]
    expected = rf"prompt 1: prompts must be all mappings or none, got {names[1]} after {names[0]} \(prompt 0\)"
    with pytest.raises(ValueError, match=expected + ".*write each as a mapping"):
        task([ROWS[first], ROWS[second]])
    with pytest.raises(ValueError, match="prompt 1: must have the field 'prompt' and the first one's fields"):
        task([{"prompt": "hello"}, {"prompt": "hello", "answer": 1}])  # control


TOOLS: list[dict[str, Any]] = [
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]},
    {"role": "assistant", "content": "hello", "tool_calls": np.array([{"name": "add"}, {"name": "add"}], dtype=object)},
    {"role": "assistant", "content": "hello", "function_call": {"name": "add"}},
    {"role": "tool", "content": "42"},
    {"role": "tool", "content": "42", "tool_call_id": "a", "name": "add"},
    {"role": "function", "content": "42"},
    {"role": "user", "content": "42", "tool_call_id": 7},
]


@pytest.mark.parametrize("message", TOOLS)
def test_tool_calls_are_refused(message: dict[str, Any]) -> None:
    """In a list, in a mapping and in `reset`: a template without tools would drop them."""
    env = task([[USER]])
    for refused in (
        lambda: task([[USER, message]]),
        lambda: task([{"prompt": [message, USER]}]),
        lambda: task({"messages": [[USER, message]]}),
        lambda: env.reset(options={"prompt": [USER, message]}),
    ):
        with pytest.raises(ValueError, match="no tool calls and no results of tools.*write them as text"):
            refused()


@pytest.mark.parametrize("empty", [None, [], (), "", {}])
def test_messages_without_calls_and_columns_of_tools_are_accepted(empty: Any) -> None:
    """Tables give every message the field; `tools`, and messages beside a prompt, are data for the reward."""
    rows = [{"prompt": [USER | {"tool_calls": empty, "tool_call_id": empty}], "tools": [{"name": "add"}]}]
    loaded = task([rows[0] | {"messages": [USER, TOOLS[0]]}]).unwrapped.mdp.prompts
    assert loaded.texts == task([[USER]]).unwrapped.prompts
    assert loaded.columns == {"tools": [[{"name": "add"}]], "messages": [[USER, TOOLS[0]]]}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user"},
        {"content": "hello"},
        {"role": "user", "content": None},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]},
        {"role": 3, "content": "hello"},
        "hello",
    ],
)
def test_messages_without_a_text_are_refused(message: Any) -> None:
    """In the list, and in `reset`; the good message beside it is accepted."""
    env = task([[USER]])
    for refused in (lambda: task([[USER, message]]), lambda: env.reset(options={"prompt": [USER, message]})):
        with pytest.raises(ValueError, match="messages with the strings role and content"):
            refused()
    assert TextMDP(byte_level(), [[USER, USER]], lambda **_: [0.0]).prompts.texts
