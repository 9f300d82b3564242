"""Finished texts, as arrays, and as the lists and strings that a reward function takes, made where one asks."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from textenv.data import Tokenizer


class FinishedCompletions:
    """K texts that have ended.

    Args:
        tokenizer: decodes the completions.
        prompt_columns: the further fields of the prompts, a list with one value a prompt for each name.
        prompt: int64 [K], which prompt, or -1 for one that is not in the list.
        prompt_text: object [K], the prompts as text.
        tokens: int64 [K, T], the answers as written, end tokens included, 0 beyond their ends.
        length: int64 [K], the number of tokens in each.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_columns: dict[str, list[Any]],
        prompt: NDArray[Any],
        prompt_text: NDArray[Any],
        tokens: NDArray[Any],
        length: NDArray[Any],
    ) -> None:
        self.tokenizer, self.prompt_columns = tokenizer, prompt_columns
        self.prompt, self.prompt_text = prompt, prompt_text
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
        decode_rows = getattr(self.tokenizer, "decode_rows", None)
        if decode_rows is not None:
            texts: list[str] = decode_rows(self.tokens)
            return texts
        return [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in self.completion_ids]

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """The further fields of each text's prompt."""
        rows = self.prompt.tolist()
        return {name: [values[i] if i >= 0 else None for i in rows] for name, values in self.prompt_columns.items()}
