"""Which of some texts are equal, so that each is read once."""

from __future__ import annotations

import torch
from torch import Tensor

# What it must spare to be worth the bookkeeping: so many tokens, and such a part of all. On a CPU and a GPT-2 of two
# layers a second pass costs as much as a few hundred tokens, and attention to a cache a little more than to itself.
MIN_SPARED, MIN_SPARED_PART = 512, 1 / 8


def distinct(input_ids: Tensor, attention_mask: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """The different ones among texts [B, W]: ids and mask [P, W], and which of them each text is, [B].

    None where to read those alone would spare too little of `total` tokens. On a GPU the host waits for the answer.
    """
    enough = max(MIN_SPARED, MIN_SPARED_PART * total)
    if input_ids.numel() < enough:
        return None
    texts, row = torch.unique(torch.where(attention_mask == 1, input_ids, -1), dim=0, return_inverse=True)
    if input_ids.numel() - texts.numel() < enough:
        return None
    return texts.clamp(min=0), (texts >= 0).to(attention_mask.dtype), row
