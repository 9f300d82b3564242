"""A batch of finished completions, as arrays, with lists and strings made on demand."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from textenv.data import Prompts, Tokenizer, messages_of
from textenv.rewards.messages import as_messages


class FinishedCompletions:
    """K finished completions with their prompts.

    Args:
        tokenizer: decodes the completions.
        listed: the prompts of the task, with their further fields.
        prompt: int64 [K], the index of each prompt, or -1 for one that is not in the list.
        prompt_text: object [K], the prompts as text; those of conversations hold their messages
            (`textenv.data.messages_of`).
        tokens: int64 [K, T], the token ids as sampled, end tokens included, 0 after the end.
        length: int64 [K], the number of tokens of each completion.

    Attributes:
        extra: the columns that reward functions have logged (`log_extra`): per name, a list with one value per
            completion.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        listed: Prompts,
        prompt: NDArray[np.int64],
        prompt_text: NDArray[np.object_],
        tokens: NDArray[np.int64],
        length: NDArray[np.int64],
    ) -> None:
        self.tokenizer, self.listed = tokenizer, listed
        self.prompt, self.prompt_text = prompt, prompt_text
        self.tokens, self.length = tokens, length
        self.extra: dict[str, list[object]] = {}

    def __len__(self) -> int:
        return len(self.prompt)

    def select(self, rows: int | NDArray[np.int64]) -> FinishedCompletions:
        """Some of the completions, in that order, or one of them alone."""
        rows = np.atleast_1d(rows)
        arrays = (self.prompt[rows], self.prompt_text[rows], self.tokens[rows], self.length[rows])
        return FinishedCompletions(self.tokenizer, self.listed, *arrays)

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts as text."""
        prompts: list[str] = self.prompt_text.tolist()
        return prompts

    @cached_property
    def completion_ids(self) -> list[list[int]]:
        """The token ids of each completion, as sampled."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.length.tolist(), strict=True)]

    @cached_property
    def completions(self) -> list[str]:
        """The completions as text, without special tokens."""
        decode_rows = getattr(self.tokenizer, "decode_rows", None)
        if decode_rows is not None:
            completions: list[str] = decode_rows(self.tokens)
            return completions
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in self.completion_ids]

    @cached_property
    def columns(self) -> dict[str, list[object]]:
        """The further fields of each completion's prompt, see `Prompts.columns_of`."""
        return self.listed.columns_of(self.prompt.tolist())

    def arguments(self) -> dict[str, list[object]]:
        """The arguments of a reward function, as lists of its own: one that changes them does not affect the next.

        Prompts and completions are texts, or messages where the prompt is a conversation.
        """
        messages = [messages_of(text) for text in self.prompts]
        chats = [each is not None for each in messages]
        return {
            "prompts": [text if each is None else each for text, each in zip(self.prompts, messages, strict=True)],
            "completions": [
                as_messages(text) if chat else text for text, chat in zip(self.completions, chats, strict=True)
            ],
            "completion_ids": [list(ids) for ids in self.completion_ids],
            **{name: list(values) for name, values in self.columns.items()},
        }
