"""Tokenizers, prompts and the files that hold them."""

from textenv.data.control_characters import printable
from textenv.data.conversations import ConversationText, messages_of, with_completion
from textenv.data.files import check_characters, parse_json, read_jsonl
from textenv.data.prompt_files import read_data_file
from textenv.data.prompts import Prompts, PromptSource, check_template_arguments, load_prompts
from textenv.data.resolve import resolve_prompt, validate_token_ids
from textenv.data.special_tokens import encode_beginning, encode_chat, encode_text, split_around
from textenv.data.tokenizers import Tokenizer, WordTokenizer
from textenv.data.vocabulary import fill_holes, token_id

__all__ = [
    "ConversationText",
    "PromptSource",
    "Prompts",
    "Tokenizer",
    "WordTokenizer",
    "check_characters",
    "check_template_arguments",
    "encode_beginning",
    "encode_chat",
    "encode_text",
    "fill_holes",
    "load_prompts",
    "messages_of",
    "parse_json",
    "printable",
    "read_data_file",
    "read_jsonl",
    "resolve_prompt",
    "split_around",
    "token_id",
    "validate_token_ids",
    "with_completion",
]
