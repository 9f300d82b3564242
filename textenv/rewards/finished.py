"""A batch of finished completions: arrays, and the lists and strings that reward functions take, made on demand."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from textenv.data import Tokenizer


class FinishedCompletions:
    """K finished completions with their prompts.

    Args:
        tokenizer: decodes the completions.
        prompt_columns: the further fields of the prompts: per name, a list with one value per prompt.
        prompt: int64 [K], the index of each prompt, or -1 for one that is not in the list.
        prompt_text: object [K], the prompts as text.
        tokens: int64 [K, T], the token ids as sampled, end tokens included, 0 after the end.
        length: int64 [K], the number of tokens of each completion.
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
    def columns(self) -> dict[str, list[Any]]:
        """The further fields of each completion's prompt; None for a prompt that is not in the list."""
        rows = self.prompt.tolist()
        return {name: [values[i] if i >= 0 else None for i in rows] for name, values in self.prompt_columns.items()}
