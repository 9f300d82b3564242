"""Vocabularies: V, the number of ids, where some ids have no token; and the id of a token's spelling."""

from __future__ import annotations

import difflib
from typing import Any

from textenv.arguments import shown
from textenv.data.tokenizers import Tokenizer


class SparseTokenizer:
    """A tokenizer whose ids have holes: V is its largest id + 1.

    An id without a token is an action like any other, since a language model has a logit for it. It is decoded to no
    text. Everything else is that of the tokenizer inside.

    Args:
        tokenizer: a tokenizer with `get_vocab`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.known = frozenset(tokenizer.get_vocab().values())
        self.size = int(max(max(self.known) + 1, len(tokenizer)))

    def __len__(self) -> int:
        return self.size

    def __getattr__(self, name: str) -> Any:
        if name in ("tokenizer", "known", "size", "decode_rows") or name.startswith(
            "__"
        ):  # not yet set while it is copied
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def decode(self, token_ids: Any, **arguments: Any) -> str:
        """Returns the text of ids; those without a token have none."""
        return str(self.tokenizer.decode([int(i) for i in token_ids if int(i) in self.known], **arguments))

    def convert_ids_to_tokens(self, ids: Any) -> list[str]:
        """Returns the token of each id, or `<id N>` where there is none."""
        return [self.tokenizer.convert_ids_to_tokens([i])[0] if i in self.known else f"<id {i}>" for i in map(int, ids)]


def fill_holes(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer with `len(tokenizer)` = V: the same, or a `SparseTokenizer` where some ids have no token."""
    ids = set(getattr(tokenizer, "get_vocab", dict)().values())
    whole = not ids or len(ids) == max(ids) + 1 <= len(tokenizer)
    return tokenizer if whole else SparseTokenizer(tokenizer)


def token_id(token: str, tokenizer: Any) -> int:
    """Returns the id of a token by its spelling.

    Raises:
        ValueError: there is no such token.
    """
    vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    if token not in vocabulary:
        near = difflib.get_close_matches(token, vocabulary, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"The tokenizer has no token {shown(token)}.{hint}")
    return int(vocabulary[token])
