"""A prompt ends with its last character: what a tokenizer appends to texts, such as EOS, is left out."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tokenizers import processors
from transformers import LlamaTokenizer, T5Tokenizer

from tests.helpers.tasks import words, zero
from tests.helpers.tokenizers import byte_level, slow, special_ids, whole_words
from textenv import TextMDP
from textenv.data import WordTokenizer, encode_text, load_prompts
from textenv.references import TableReference


def processed(single: str) -> Any:
    """A byte-level tokenizer that adds special tokens around a text, `$A`."""
    tokenizer = byte_level()
    inner = tokenizer.backend_tokenizer
    special = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>", "<|end|>")]
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def t5() -> Any:
    """T5's class, which appends its end token."""
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((c, -2.0) for c in "▁helowrd")])


def llama() -> Any:
    """Llama's class with `add_eos_token`."""
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *"▁helowrd"])}
    return LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, add_eos_token=True)


class Appends(WordTokenizer):
    """A tokenizer of one's own that appends its end token."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return super().encode(text) + [0] * add_special_tokens


MAKERS = {
    "T5": t5,
    "ByT5": slow,
    "Llama, add_eos_token": llama,
    "BOS and EOS": lambda: processed("<s> $A </s>"),
    "EOS": lambda: processed("$A </s>"),
    "several": lambda: processed("<s> <s> $A <|end|> </s> </s>"),
    "BOS behind": lambda: processed("<s> $A <s>"),
    "your own": lambda: Appends("hello world"),
}
every_tokenizer = pytest.mark.parametrize("kind", sorted(MAKERS))


@every_tokenizer
@pytest.mark.parametrize("text", ["hello world", "hello", "hello hello hello"])
def test_nothing_follows_the_text(kind: str, text: str) -> None:
    """In the list and in `reset`: what the tokenizer adds before the text, and the text's own tokens."""
    tokenizer = MAKERS[kind]()
    whole, inner = list(tokenizer.encode(text)), list(tokenizer.encode(text, add_special_tokens=False))
    before = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    assert len(whole) > before + len(inner)  # control: something is appended
    expected = whole[: before + len(inner)]
    assert load_prompts([text], tokenizer).input_ids.tolist() == [expected]
    env = gym.make(
        "textenv/Text-v0", **words(tokenizer=tokenizer, prompts=["world"], max_prompt_length=50, reward=zero)
    )
    observation, _ = env.reset(options={"prompt": text})
    assert observation["input_ids"][observation["attention_mask"] == 1].tolist() == expected
    assert list(tokenizer.encode(text)) == whole  # the tokenizer is as it was
    assert encode_text(text, tokenizer).ids == whole  # a classifier's texts are whole


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"your own", "T5", "Llama, add_eos_token"}))
def test_a_spelling_of_the_appended_token_stays(kind: str) -> None:
    """Typed at the end of a prompt, it is text, or the token where that was asked for; only the appended one is left
    out."""
    tokenizer = MAKERS[kind]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ordinary = load_prompts(["hello</s>"], tokenizer).input_ids[0].tolist()
        read = load_prompts(["hello</s>"], tokenizer, special_tokens_in_prompts=True).input_ids[0].tolist()
    assert tokenizer.eos_token_id not in ordinary and read[-1] == tokenizer.eos_token_id
    assert read.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode([i for i in ordinary if i not in special_ids(tokenizer)]) == "hello</s>"


def test_tokenizers_that_append_nothing_are_as_they_were() -> None:
    """Every token that the tokenizer gives is kept."""
    for tokenizer in (byte_level(), whole_words("<unk>"), processed("<s> $A")):
        assert load_prompts(["hello world"], tokenizer).input_ids[0].tolist() == tokenizer.encode("hello world")


def test_a_tokenizer_whose_own_tokens_cannot_be_told_from_the_text_is_refused() -> None:
    """Where it encodes the text otherwise without them."""

    class Otherwise(WordTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            ids = super().encode(text)
            return [*ids[::-1], 0] if add_special_tokens else ids

    load_prompts(["hello hello"], Otherwise("hello world"))
    with pytest.raises(
        ValueError, match="prompt 0: the tokenizer must encode a text to the same tokens with and without"
    ):
        load_prompts(["hello world"], Otherwise("hello world"))


def test_messages_get_nothing_appended() -> None:
    """A chat template writes all special tokens."""
    tokenizer, plain = processed("<s> $A </s>"), byte_level()
    chat = [{"role": "user", "content": "hello"}]
    mdp = TextMDP(tokenizer, [copy.deepcopy(chat)], zero)
    assert mdp.prompts.input_ids.tolist() == load_prompts([chat], plain).input_ids.tolist()


def test_a_reference_from_completions_knows_the_same_prompts() -> None:
    """Its prompts end where those of the task end, and its V is theirs: with an appended token, and with holes."""

    class AppendsWithHoles(Appends):
        def get_vocab(self) -> dict[str, int]:
            return super().get_vocab() | {"far": 7}

    for tokenizer in (Appends("hello world"), AppendsWithHoles("hello world"), WordTokenizer("hello world")):
        reference = TableReference.from_completions(tokenizer, {"hello": {"world": 0.75, "": 0.25}})
        mdp = TextMDP(**words(tokenizer=tokenizer, prompts=["hello"], reference=reference, reward=zero))
        probabilities = np.exp(mdp.next_ref_log_probs(mdp.make_state("hello")))[0]
        assert probabilities[:3].tolist() == pytest.approx([0.25, 0.0, 0.75]) and not probabilities[3:].any()
