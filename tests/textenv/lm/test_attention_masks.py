"""Masks of queries and keys, and prompts whose equality is known on the host."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.models import model
from textenv.lm import forward_completions
from textenv.lm.attention_masks import causal_mask, has_full_attention, mask_for, takes_masks
from textenv.lm.inputs import deduplicate, position_ids

PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]], dtype=torch.int8)


@pytest.mark.parametrize("queries", [1, 2, 6])
def test_a_query_attends_to_tokens_that_are_not_later(queries: int) -> None:
    """Checked for every query and key; one query needs no other numbers than the mask."""
    found = causal_mask(PADDED.bool(), queries)
    assert found.shape == (3, 1, queries, 6)
    for row in range(3):
        for query in range(queries):
            for key in range(6):
                later = key > 6 - queries + query
                assert bool(found[row, 0, query, key]) == (bool(PADDED[row, key]) and not later)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_the_model_computes_the_same_with_it(kind: str) -> None:
    """On the CPU it is not used, so that nothing changes there. Control: a mask without the padding."""
    language_model = model(kind).eval()
    ids = torch.randint(9, PADDED.shape, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "position_ids": position_ids(PADDED), "use_cache": False}
    with torch.no_grad():
        expected = language_model(**inputs, attention_mask=PADDED).logits
        found = language_model(**inputs, attention_mask=causal_mask(PADDED.bool(), 6)).logits
        other = language_model(**inputs, attention_mask=causal_mask(torch.ones_like(PADDED).bool(), 6)).logits
    real = PADDED == 1
    assert torch.allclose(found[real], expected[real], atol=1e-10)
    assert not torch.allclose(other[real], expected[real], atol=1e-3)
    assert takes_masks(language_model) and mask_for(language_model, PADDED, 6) is PADDED


def test_windows_and_other_kinds_of_attention_get_none() -> None:
    """A window is not in the mask, and eager attention adds numbers."""
    windowed = model("qwen2").eval()
    windowed.config.layer_types = ["full_attention", "sliding_attention"]
    windowed.config.sliding_window = 4
    assert not has_full_attention(windowed.config) and not takes_masks(windowed)
    eager = model("llama").eval()
    assert takes_masks(eager)  # control
    eager.set_attn_implementation("eager")
    assert not takes_masks(eager)


def test_known_prompts_are_those_that_are_found() -> None:
    """The same rows in the same order, from numbers on the host; and the same logits. Control: another grouping."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(9, (3, 30), generator=generator)
    row = torch.tensor([2, 0, 2, 1, 0, 0] * 10)
    ids = torch.cat([prompts[row], torch.randint(9, (60, 2), generator=generator)], dim=1)
    mask = torch.ones_like(ids)
    known = np.unique(prompts[row].numpy(), axis=0, return_inverse=True)[1].reshape(-1)
    found, expected = (deduplicate(ids[:, :30], mask[:, :30], ids.numel(), each) for each in (known, None))
    assert found is not None and expected is not None
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert deduplicate(ids[:, :30], mask[:, :30], ids.numel(), np.arange(60)) is None  # nothing to save
    language_model = model("llama", vocab_size=9).eval()
    with torch.no_grad():
        logits = [forward_completions(language_model, ids, mask, 2, share).logits for share in (True, known, known * 0)]
    assert torch.equal(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2], atol=1e-3)
