"""Makes a tokenizer of what users pass: a tokenizer, or the place to load one from."""

from __future__ import annotations

from os import PathLike
from typing import Any

from textenv.data import Tokenizer, fill_holes

METHODS = ("__len__", "encode", "decode", "convert_ids_to_tokens")
IDS = ("eos_token_id", "pad_token_id")


def as_tokenizer(tokenizer: Any) -> Tokenizer:
    """Returns a tokenizer with `len(tokenizer)` = V, given one, or the path or hub id of one.

    Raises:
        ValueError: it is no tokenizer, or cannot be loaded.
    """
    if isinstance(tokenizer, str | PathLike):
        from textenv.lm import load_tokenizer  # imports torch, so only where there is something to load

        try:
            tokenizer = load_tokenizer(tokenizer)
        except ValueError as error:
            raise ValueError(f"tokenizer: {error}") from error
    if missing := [name for name in (*METHODS, *IDS) if not hasattr(tokenizer, name)]:
        hint = "of transformers (AutoTokenizer), a WordTokenizer, or the path or hub id of one"
        if hasattr(tokenizer, "tokenizer"):
            hint = f"{hint}; of a processor, its tokenizer: processor.tokenizer"
        elif hasattr(tokenizer, "token_to_id"):
            hint = f"{hint}; of the library tokenizers, PreTrainedTokenizerFast(tokenizer_object=tokenizer)"
        raise ValueError(
            f"tokenizer must be one {hint}; got the {type(tokenizer).__name__} {str(tokenizer)[:100]!r}, which has no "
            f"{missing[0]}."
        )
    return fill_holes(tokenizer)
