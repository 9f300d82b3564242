"""Small tokenizers of several kinds, each with special tokens, and one with a chat template."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

SPECIAL = ["<s>", "</s>", "<|user|>", "<|end|>"]
TEMPLATE = "<s>{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}<|end|>{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|user|>assistant: {% endif %}"


def byte_level(normalized: bool = False) -> Any:
    """A byte-level BPE, as GPT-2's, that adds BOS."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    if normalized:
        inner.normalizer = normalizers.Lowercase()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(["hello world, user: assistant"], trainers.BpeTrainer(initial_alphabet=alphabet))
    inner.add_special_tokens([AddedToken(token, normalized=normalized) for token in SPECIAL])
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)


def whole_words(unknown: str | None = None) -> Any:
    """One token per word, the special tokens among them; `unknown` is the token of other words."""
    vocabulary = [*SPECIAL, "<unk>", "hello", "world", "user:", "assistant:"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=unknown or "hello"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(SPECIAL)
    arguments = {} if unknown is None else {"unk_token": unknown}
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>", **arguments)


def unigram() -> Any:
    """A unigram model whose vocabulary holds the special tokens, as T5's does."""
    pieces = [(token, 0.0) for token in [*SPECIAL, "<unk>"]] + [(c, -3.0) for c in "▁helowrdusrain:,"]
    inner = Tokenizer(models.Unigram(pieces, unk_id=4))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.add_special_tokens([*SPECIAL, "<unk>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>", bos_token="<s>")


def slow() -> Any:
    """A tokenizer in Python, of bytes."""
    return ByT5Tokenizer()


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of the special tokens, that of unknown words apart."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (special | {tokenizer.eos_token_id, tokenizer.pad_token_id}) - {tokenizer.unk_token_id, None}
