"""Data of the environment: tokenizers, prompts, text files."""

from textenv.data.files import read_jsonl, read_lines
from textenv.data.prompts import Prompts, PromptSource, encode_prompt, is_conversation, load_prompts
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
]
