"""Decoding without a KV cache: each step reads the whole sequences again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from textenv.lm.cache_support import supports_cache
from textenv.lm.cached_decoder import CachedDecoder
from textenv.lm.inputs import last_columns, pack_left
from textenv.lm.prefix_sharing import forward_sequences
from textenv.lm.protocols import CausalLM


class UncachedDecoder:
    """Decodes B sequences token by token, as `CachedDecoder` does, for models that must be read without a cache."""

    def __init__(self, model: CausalLM) -> None:
        self.model = model

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Starts with sequences [B, L]; returns the model's output, with logits [B, 1, V] of the next token."""
        self.input_ids, self.attention_mask = input_ids.to(self.model.device), attention_mask.to(self.model.device)
        return self._forward()

    @torch.inference_mode()
    def decode_step(self, tokens: Tensor, live: Tensor | None = None) -> Any:
        """Appends one token to each sequence, [B]; returns the model's output, with logits [B, 1, V].

        Where `live` (bool [B]) is False the sequence stays as it is, and its logits are meaningless.
        """
        added = torch.ones_like(tokens) if live is None else live.to(tokens.dtype)
        self.input_ids = torch.cat([self.input_ids, tokens[:, None]], dim=1)
        self.attention_mask = torch.cat([self.attention_mask, added[:, None].to(self.attention_mask.dtype)], dim=1)
        return self._forward()

    @torch.inference_mode()
    def select_rows(self, rows: Tensor) -> None:
        """Keeps the sequences `rows` [K], which may repeat: the others cost nothing from here on."""
        self.input_ids, self.attention_mask = self.input_ids[rows], self.attention_mask[rows]

    def _forward(self) -> Any:
        # new tensors: the caller may write to its own, and a row that stayed as it is ends with padding
        self.input_ids, self.attention_mask = pack_left(self.input_ids, self.attention_mask)
        last = last_columns(1, self.input_ids)
        return forward_sequences(self.model, self.input_ids, self.attention_mask, 1, False, logits_to_keep=last)


def new_decoder(model: CausalLM) -> CachedDecoder | UncachedDecoder:
    """A decoder that reads a causal language model as it must be read."""
    return CachedDecoder(model) if supports_cache(model) else UncachedDecoder(model)
