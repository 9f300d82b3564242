"""Tokenizers, prompts and the files that hold them."""

from textenv.data.files import read_jsonl
from textenv.data.prompts import Prompts, PromptSource, load_prompts
from textenv.data.resolve import resolve_prompt, validate_token_ids
from textenv.data.tokenizers import Tokenizer, WordTokenizer

__all__ = [
    "PromptSource",
    "Prompts",
    "Tokenizer",
    "WordTokenizer",
    "load_prompts",
    "read_jsonl",
    "resolve_prompt",
    "validate_token_ids",
]
