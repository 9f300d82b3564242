"""Decoding with a KV cache: each token of a sequence passes through the model once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from textenv.lm.attention_masks import mask_for
from textenv.lm.devices import is_accelerator
from textenv.lm.inputs import cache_argument, deduplicate, last_columns, pack_left, position_ids
from textenv.lm.protocols import CausalLM

BLOCK_COLUMNS = 32  # columns allocated at a time: one copy of the cache per 32 tokens, and at most 32 unused columns


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [B, heads, capacity, d]; the first `num_columns` columns are in use.

    A token is stored in place. transformers' own layer copies the whole cache for each token.
    """

    keys: Any
    values: Any
    num_columns = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Stores further columns and returns all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, stop = self.num_columns, self.num_columns + key_states.shape[2]
        if stop > self.keys.shape[2]:  # keys first, then values, so that only one of them has two copies
            self.keys = self._enlarge(self.keys, stop + BLOCK_COLUMNS)
            self.values = self._enlarge(self.values, stop + BLOCK_COLUMNS)
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = key_states, value_states
        self.num_columns = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def _enlarge(self, x: Tensor, capacity: int) -> Tensor:
        wider = x.new_empty(*x.shape[:2], capacity, x.shape[3])
        wider[:, :, : self.num_columns] = x[:, :, : self.num_columns]
        return wider

    def get_seq_length(self) -> int:
        """The number of columns in use."""
        return self.num_columns


class CachedDecoder:
    """Decodes B sequences token by token: each token passes through the model once.

    A sequence lies in adjacent columns that end at the last one, whatever company it has: a row that is replaced gets
    the last columns, and the others stay where they are. So distances between columns are distances between tokens, as
    windows of attention require, and positions come from the position ids. Only a row that sat out a step has a gap.
    The outputs are inference tensors: autograd refuses them, so they cannot be trained through.
    """

    def __init__(self, model: CausalLM) -> None:
        self.model = model
        self._cache_argument = cache_argument(model)
        self.cache: Any = None
        self.mask = torch.zeros((0, 0), dtype=torch.long)
        self.length = torch.zeros(0, dtype=torch.long)

    @property
    def num_columns(self) -> int:
        """The columns of the cache; a row that sits out a step has a column without a token."""
        return int(self.mask.shape[1])

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Starts with sequences [B, L]; returns the model's output, with logits [B, 1, V] of the next token.

        Equal sequences are processed once, where that saves enough tokens. The sequences may be on the host, where they
        are compared without waiting for the device.
        """
        ids, mask = pack_left(input_ids, attention_mask)
        distinct = deduplicate(ids, mask, ids.numel())
        device, row = self.model.device, None
        if distinct is not None:
            ids, mask, row = distinct
        ids, mask = ids.to(device), mask.to(device)
        self.cache = Cache(layer_class_to_replicate=PreallocatedLayer)
        # as the model gets it, so that no step converts it: see `mask_for`
        self.mask, self.length = mask.to(torch.bool if is_accelerator(device) else torch.long), mask.sum(dim=1)
        output = self._forward(ids, position_ids(mask))
        if row is not None:
            row = row.to(device)
            self.select_rows(row)
            output.logits = output.logits[row]
        return output

    @torch.inference_mode()
    def decode_step(self, tokens: Tensor, live: Tensor | None = None) -> Any:
        """Appends one token to each sequence, [B]; returns the model's output, with logits [B, 1, V].

        Where `live` (bool [B]) is False the sequence stays as it is, and its logits are meaningless.
        """
        live = torch.ones_like(tokens, dtype=torch.bool) if live is None else live
        self.mask = torch.cat([self.mask, live[:, None].to(self.mask.dtype)], dim=1)
        self.length = self.length + live
        return self._forward(tokens[:, None], self.length[:, None] - 1)

    @torch.inference_mode()
    def select_rows(self, rows: Tensor) -> None:
        """Keeps the sequences `rows` [K], which may repeat: the others cost nothing from here on."""
        self.mask, self.length = self.mask[rows], self.length[rows]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    @torch.inference_mode()
    def reset_rows(self, rows: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Replaces rows `rows` [K] by other sequences, prefilled; returns the model's output for those rows."""
        other = CachedDecoder(self.model)
        output = other.prefill(input_ids, attention_mask)
        width = other.mask.shape[1]
        self.mask[rows] = 0
        self._keep_columns(self.mask.any(dim=0), at_least=width)
        self.mask[rows, -width:] = other.mask
        self.length[rows] = other.length
        for ours, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            last = slice(ours.num_columns - width, ours.num_columns)
            ours.keys[rows, :, last] = theirs.keys[:, :, :width]
            ours.values[rows, :, last] = theirs.values[:, :, :width]
        return output

    def _keep_columns(self, used: Tensor, at_least: int) -> None:
        """Drops the columns that no sequence uses, then adds empty columns on the left up to `at_least`."""
        missing = max(0, at_least - int(used.sum()))
        self.mask = F.pad(self.mask[:, used], (missing, 0))
        for layer in self.cache.layers:
            num_columns = layer.num_columns
            layer.keys = F.pad(layer.keys[:, :, :num_columns][:, :, used], (0, 0, missing, 0))
            layer.values = F.pad(layer.values[:, :, :num_columns][:, :, used], (0, 0, missing, 0))
            layer.num_columns = self.mask.shape[1]

    def _forward(self, input_ids: Tensor, positions: Tensor) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=mask_for(self.model, self.mask, input_ids.shape[1]),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1 if input_ids.shape[1] == 1 else last_columns(1, input_ids),
            **{self._cache_argument: self.cache},
        )
