"""Completions as reward functions get them: texts, or messages where the prompt is a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Completion = str | Sequence[Mapping[str, object]]


def as_messages(completion: str) -> list[dict[str, str]]:
    """A completion as the turn of an assistant."""
    return [{"role": "assistant", "content": completion}]


def completion_text(completion: Completion) -> str:
    """The text of a completion, which is a text or messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)
