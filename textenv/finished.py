"""Finished texts, as arrays, and as the lists and strings that a reward function takes, made where one asks."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from textenv.process import TextProcess


class Finished:
    """K texts that have ended.

    Args:
        process: whose texts they are.
        prompt: int64 [K], which prompt, or -1 for one that is not in the list.
        prompt_text: object [K], the prompts as text.
        tokens: int64 [K, T], the answers as written, end tokens included, 0 beyond their ends.
        length: int64 [K], the number of tokens in each.
    """

    def __init__(
        self,
        process: TextProcess,
        prompt: NDArray[Any],
        prompt_text: NDArray[Any],
        tokens: NDArray[Any],
        length: NDArray[Any],
    ) -> None:
        self.process, self.prompt, self.prompt_text = process, prompt, prompt_text
        self.tokens, self.length = tokens, length

    def __len__(self) -> int:
        return len(self.prompt)

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts as text."""
        texts: list[str] = self.prompt_text.tolist()
        return texts

    @cached_property
    def completion_ids(self) -> list[list[int]]:
        """The answers as written."""
        return [row[:length] for row, length in zip(self.tokens.tolist(), self.length.tolist(), strict=True)]

    @cached_property
    def completions(self) -> list[str]:
        """The answers as text, without special tokens."""
        decode_rows = getattr(self.process.tokenizer, "decode_rows", None)
        if decode_rows is not None:
            texts: list[str] = decode_rows(self.tokens)
            return texts
        return [self.process.decode(ids) for ids in self.completion_ids]

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """The further fields of each text's prompt."""
        rows = self.prompt.tolist()
        return {
            name: [values[i] if i >= 0 else None for i in rows] for name, values in self.process.prompts.columns.items()
        }
