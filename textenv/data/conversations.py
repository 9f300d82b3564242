"""Conversations as prompts: lists of messages, and the text that a chat template makes of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textenv.arguments import shown

Message = dict[str, Any]
TOOL_ROLES = {"tool", "function"}  # of messages that hold what a tool has returned
TOOL_FIELDS = ("tool_calls", "tool_call_id", "function_call")


class ConversationText(str):
    """The text of a conversation, as its chat template renders it up to the completion, with its messages.

    It travels as the prompt's text, so that a conversation is scored alike wherever it came from: in the list of
    prompts, in `reset`, or in a rollout that is replayed.

    Attributes:
        messages: the messages that were rendered.
    """

    messages: list[Message]

    def __new__(cls, text: str, messages: Sequence[Message] = ()) -> ConversationText:
        """Makes the text. (Copying and unpickling set `messages` afterwards.)"""
        self = super().__new__(cls, text)
        self.messages = list(messages)
        return self


def messages_of(text: object) -> list[Message] | None:
    """Returns a copy of the messages of a prompt's text; None where the prompt is no conversation."""
    return [dict(message) for message in text.messages] if isinstance(text, ConversationText) else None


def read_messages(value: object) -> list[Message] | None:
    """Returns the messages of a conversation as a list of dicts, without fields that are None.

    Tables such as Arrow's give every message the fields of all, and None where there is none. Returns None if the value
    is no list, or has no message.

    Raises:
        ValueError: it holds messages, and one of its elements has not the strings `role` and `content`, or holds tool
            calls or a tool's result.
    """
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if not isinstance(value, Sequence) or not any(isinstance(message, Mapping) for message in value):
        return None
    for message in value:
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise ValueError(
                "a prompt must be a string, or messages with the strings role and content (images and tool calls are "
                f"not supported), got {shown(message)} in {shown(value)}."
            )
        given = [message[field] for field in TOOL_FIELDS if message.get(field) is not None]
        # tables have an empty list where there is no call
        if message["role"] in TOOL_ROLES or any(not hasattr(each, "__len__") or len(each) > 0 for each in given):
            raise ValueError(
                "a prompt's messages must have no tool calls and no results of tools, which many chat templates leave "
                f"out, got {shown(message)}; write them as text into the content of other messages."
            )
    return [{str(name): field for name, field in message.items() if field is not None} for message in value]


def continues_last_message(messages: Sequence[Message]) -> bool:
    """Whether the completion continues the last message, which is the beginning of an assistant's turn."""
    return bool(messages) and messages[-1].get("role") == "assistant"


def with_completion(messages: Sequence[Message], completion: str) -> list[Message]:
    """Returns the whole conversation: the completion is a turn of the assistant, or continues one that has begun."""
    if continues_last_message(messages):
        *before, last = messages
        return [*map(dict, before), {**last, "content": last["content"] + completion}]
    return [*map(dict, messages), {"role": "assistant", "content": completion}]
