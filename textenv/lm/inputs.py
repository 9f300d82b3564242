"""Sequences as a causal language model takes them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

# What it must spare to be worth the bookkeeping: so many tokens, and such a part of all. On a CPU and a GPT-2 of two
# layers a second pass costs as much as a few hundred tokens, and attention to a cache a little more than to itself.
MIN_SAVED_TOKENS, MIN_SAVED_FRACTION = 512, 1 / 8


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that padding on the left shifts nothing. [B, L]."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def pack_left(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same texts without blanks inside or on the right: all padding on the left, as little as possible."""
    width = int(attention_mask.sum(dim=1).max())
    order = attention_mask.long().argsort(dim=1, stable=True)[:, -width:]
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def last_columns(number: int, like: Tensor) -> Tensor:
    """`logits_to_keep` of the last `number` columns, on the device of `like`, where no gradient is wanted.

    As a number it would be a slice, which PyTorch multiplies by a frozen output layer text by text, on a CPU in
    bfloat16 with a copy of that layer for each; columns that are picked lie side by side.
    """
    return torch.arange(-number, 0, device=like.device)


def base_model(model: Any) -> Any:
    """The model within an adapter; another itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cache_argument(model: Any) -> str:
    """What the model calls its KV cache: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(base_model(model).forward).parameters else "past_key_values"


def deduplicate(input_ids: Tensor, attention_mask: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The different ones among texts [B, W]: ids and mask [P, W], and which of them each text is, [B].

    None where to read those alone would spare too little of `total` tokens. On a GPU the host waits for the answer.
    """
    enough = max(MIN_SAVED_TOKENS, MIN_SAVED_FRACTION * total)
    if input_ids.numel() < enough:
        return None
    texts, row = torch.unique(torch.where(attention_mask == 1, input_ids, -1), dim=0, return_inverse=True)
    if input_ids.numel() - texts.numel() < enough:
        return None
    return texts.clamp(min=0), (texts >= 0).to(attention_mask.dtype), row
