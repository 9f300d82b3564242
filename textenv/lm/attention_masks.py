"""Attention masks for accelerators.

Given a mask [B, K] of the tokens that are no padding, transformers looks in each pass whether it could do without: the
host waits for the device. So a mask of queries and keys, which transformers takes as it is, is made here: the same one,
in fewer kernels. On the CPU nothing waits, and transformers may leave the mask out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from textenv.lm.devices import is_accelerator
from textenv.lm.inputs import base_model, position_ids, trunk_of
from textenv.lm.rounding import rounding_tolerance

ATTRIBUTE = "textenv_takes_masks"  # of a model, with what `takes_masks` found; copies have it too
LENGTH = 8  # tokens of the sequences that are tried
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)  # says nothing about a model


def mask_for(model: Any, mask: Tensor, num_queries: int) -> Tensor:
    """Returns the model's `attention_mask`: as it is given, [B, K], or on an accelerator bool [B, 1, Q, K].

    Args:
        model: a causal LM, or its trunk.
        mask: 1 on the tokens, 0 on padding, [B, K].
        num_queries: Q; the last Q of the K columns are the input.
    """
    if is_accelerator(mask.device) and not torch.compiler.is_compiling() and takes_masks(model):
        return causal_mask(mask.bool(), num_queries)
    return mask.long() if mask.dtype == torch.bool else mask


def causal_mask(mask: Tensor, num_queries: int) -> Tensor:
    """The columns that each of the last Q columns attends to: tokens that are not later, bool [B, 1, Q, K]."""
    if num_queries == 1:
        return mask[:, None, None]
    columns = mask.shape[1]
    not_later = torch.ones(num_queries, columns, dtype=torch.bool, device=mask.device).tril(columns - num_queries)
    return mask[:, None, None] & not_later


def takes_masks(model: Any) -> bool:
    """Whether a model computes with masks of queries and keys what it computes with masks of tokens.

    All its layers must attend to all columns. The rest, such as positions that are made from the mask, is found out by
    two passes over 16 tokens when it is first asked.
    """
    model = base_model(model)
    if model.config._attn_implementation != "sdpa":  # others take masks of numbers, or none
        return False
    if not hasattr(model, ATTRIBUTE):
        found = has_full_attention(model.config) and _computes_the_same(model)
        for module in (model, trunk_of(model)):
            setattr(module, ATTRIBUTE, found)
    return bool(getattr(model, ATTRIBUTE))


def has_full_attention(config: Any) -> bool:
    """Whether all layers of a model attend to all columns: no sliding windows, no recurrent states."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


@torch.no_grad()
def _computes_the_same(model: Any) -> bool:
    """Whether both masks lead to the same outputs, for a sequence and for one with padding before it."""
    size = model.config.get_text_config().vocab_size
    ids = torch.randint(size, (2, LENGTH), generator=torch.Generator().manual_seed(0)).to(model.device)
    mask = torch.ones_like(ids)
    mask[1, : LENGTH // 2] = 0
    inputs = {"input_ids": ids, "position_ids": position_ids(mask), "use_cache": False}
    try:
        expected, found = (model(**inputs, attention_mask=each)[0] for each in (mask, causal_mask(mask.bool(), LENGTH)))
    except OUT_OF_MEMORY:
        raise
    except Exception:  # whatever a model does that makes something else of the mask
        return False
    expected, found = expected[mask == 1].float(), found[mask == 1].float()
    return bool((found - expected).abs().max() <= rounding_tolerance(expected, model.dtype))
