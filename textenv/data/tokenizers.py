"""Tokenizers: the interface that the environment uses, and a whole-word tokenizer for toy vocabularies."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from textenv.state import Array


class Tokenizer(Protocol):
    """The part of Hugging Face's tokenizer interface that the environment uses.

    Optional methods: `get_vocab() -> dict[str, int]`, all tokens with their ids, without which the ids are
    0 .. `len(tokenizer)` - 1; and `decode_rows(token_ids [K, T]) -> list[str]`, which decodes K completions in one
    call, without special tokens; 0 fills a row after its end.
    """

    eos_token_id: Any
    pad_token_id: Any

    def __len__(self) -> int: ...
    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: object, /, *, skip_special_tokens: bool = False) -> Any: ...
    def convert_ids_to_tokens(self, ids: object, /) -> Any: ...


class WordTokenizer:
    """One token per word, words separated by spaces; id 0 is the end token.

    The end token is also the padding token (`pad_token_id == eos_token_id`), as in GPT-2: only the attention mask
    distinguishes the two.

    Args:
        words: the vocabulary without the end token, as a list or as one string; id i + 1 is the i-th distinct word.
        eos_token: the spelling of the end token.

    Raises:
        ValueError: there is no word, a word is empty or contains spaces, or the end token is among the words.

    >>> tokenizer = WordTokenizer("agra is in india")
    >>> tokenizer.encode("agra is in")
    [1, 2, 3]
    >>> tokenizer.decode([4, 0], skip_special_tokens=True)
    'india'
    """

    def __init__(self, words: str | Sequence[str], eos_token: str = "<eos>") -> None:
        distinct = dict.fromkeys(words.split() if isinstance(words, str) else words)
        if not distinct:
            raise ValueError("WordTokenizer needs at least one word, got none.")
        if eos_token in distinct:
            raise ValueError(f"The end token {eos_token!r} must not be one of the words; pass another eos_token.")
        if broken := [word for word in distinct if not word or word.split() != [word]]:
            raise ValueError(f"A word must not be empty or contain spaces, got {broken[0]!r}.")
        self.tokens = [eos_token, *distinct]
        self.ids = {word: i for i, word in enumerate(distinct, start=1)}
        self.eos_token_id = self.pad_token_id = 0
        # for `decode_rows`: a space and the word in UTF-8, padded to one width; the last cell begins a row
        cells = [b"", *((" " + word).encode(errors="surrogatepass") for word in distinct), b"\n"]
        widest = max(map(len, cells))
        self._cells = np.array([cell.ljust(widest, b"\t") for cell in cells])

    def __len__(self) -> int:
        return len(self.tokens)

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of each token."""
        return {token: i for i, token in enumerate(self.tokens)}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of the words of `text`. `add_special_tokens` has no effect: there are none to add.

        Raises:
            ValueError: a word is unknown; the spelling of the end token is no word.
        """
        try:
            return [self.ids[word] for word in text.split()]
        except KeyError as error:
            word = error.args[0]
            near = difflib.get_close_matches(word, self.ids, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"The word {word!r} is not in the vocabulary of {len(self)} tokens.{hint}") from None

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Returns the words of `token_ids`, separated by spaces."""
        return " ".join(self.tokens[i] for i in token_ids if not (skip_special_tokens and i == self.eos_token_id))

    def decode_rows(self, token_ids: Array) -> list[str]:
        """Decodes each row of `token_ids` [K, T], without end tokens.

        A subclass that overrides `decode` is called row by row. Otherwise all rows become one string, which is split
        at line feeds: words contain no white space.
        """
        if type(self).decode is not WordTokenizer.decode:
            return [self.decode(row, skip_special_tokens=True) for row in token_ids.tolist()]
        rows = np.empty((len(token_ids), token_ids.shape[1] + 1), dtype=np.int64)
        rows[:, 0], rows[:, 1:] = len(self), token_ids
        text = self._cells.take(rows).tobytes().translate(None, b"\t").replace(b"\n ", b"\n")
        return text.decode(errors="surrogatepass").split("\n")[1:]

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        """Returns the token of each id."""
        return [self.tokens[i] for i in ids]
