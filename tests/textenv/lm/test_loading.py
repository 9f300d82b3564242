"""Loading a causal language model: encoders and models without a head are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
)

from agents.policy import TransformerPolicy
from tests.helpers.models import CONFIGS, PADDED, SMALL, model, task
from textenv.lm import find_cache_support, load_causal_lm


def test_encoders_are_refused(tmp_path: Path) -> None:
    """An encoder loads as a causal language model but attends to later tokens: its log-probabilities are wrong."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    encoder = BertLMHeadModel(BertConfig(vocab_size=PADDED, initializer_range=0.5, **sizes)).eval()
    ids = torch.tensor([[3, 4], [3, 5]])
    with torch.no_grad():
        first = encoder(ids).logits[:, 0]
    assert not torch.allclose(first[0], first[1], atol=1e-3)  # the later token changes the first one's logits
    with pytest.raises(ValueError, match="BertLMHeadModel attends to later tokens"):
        find_cache_support(encoder)
    encoder.save_pretrained(tmp_path / "bert")
    for load in (TransformerPolicy.from_pretrained, lambda path: task("gpt2", reference=path)):
        with pytest.raises(ValueError, match="so it is not a causal language model"):
            load(str(tmp_path / "bert"))
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="t5' is not a causal language model.*but a t5"):
        task("gpt2", reference=str(tmp_path / "t5"))
    for kind in CONFIGS:  # controls
        find_cache_support(model(kind).eval())


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    """A classifier has no weights for the next token; transformers would draw them at random."""
    small = LlamaConfig(vocab_size=PADDED, tie_word_embeddings=False, num_labels=1, pad_token_id=0, **SMALL)
    LlamaForSequenceClassification(small).save_pretrained(tmp_path)
    for load in (TransformerPolicy.from_pretrained, lambda path: task("gpt2", reference=path)):
        with pytest.raises(ValueError, match=r"is not a complete causal language model: lm_head.weight is missing"):
            load(str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_told_as_such(value: float) -> None:
    """Not as a model that attends to later tokens."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    find_cache_support(model)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = value
    with pytest.raises(ValueError, match="weights of the GPT2LMHeadModel are not finite"):
        find_cache_support(model)


def test_weights_are_loaded_in_float32(tmp_path: Path) -> None:
    """Whatever they were saved in: log-probabilities in bfloat16 would be another reference."""
    config = GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load_causal_lm(tmp_path).parameters()} == {torch.float32}
