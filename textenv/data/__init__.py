"""Tokenizers, prompts and the files that hold them."""

from textenv.data.files import read_jsonl, read_lines
from textenv.data.prompts import Prompts, PromptSource, encode_prompt, is_conversation, load_prompts
from textenv.data.resolve import resolve_prompt, validate_token_ids
from textenv.data.tokenizers import Tokenizer, WordTokenizer

__all__ = [
    "PromptSource",
    "Prompts",
    "Tokenizer",
    "WordTokenizer",
    "encode_prompt",
    "is_conversation",
    "load_prompts",
    "read_jsonl",
    "read_lines",
    "resolve_prompt",
    "validate_token_ids",
]
