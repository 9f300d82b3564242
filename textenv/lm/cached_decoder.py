"""Reading texts token by token into a KV cache, each token once; and texts as a model wants them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from textenv.lm.inputs import cache_argument, deduplicate, last_columns, pack_left, position_ids

BLOCK_COLUMNS = (
    32  # columns at a time: the cache is copied once in so many tokens, and no larger than it must be by more
)


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [B, heads, room, d], in the first `num_columns` columns: a token is written in place.

    transformers' own copies the whole cache for each token.
    """

    keys: Any
    values: Any
    num_columns = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write more columns; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, stop = self.num_columns, self.num_columns + key_states.shape[2]
        if stop > self.keys.shape[2]:
            self.keys = self._enlarge(
                self.keys, stop + BLOCK_COLUMNS
            )  # one at a time, so that one alone is there twice
            self.values = self._enlarge(self.values, stop + BLOCK_COLUMNS)
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = key_states, value_states
        self.num_columns = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def _enlarge(self, x: Tensor, room: int) -> Tensor:
        wider = x.new_empty(*x.shape[:2], room, x.shape[3])
        wider[:, :, : self.num_columns] = x[:, :, : self.num_columns]
        return wider

    def get_seq_length(self) -> int:
        """The columns that are num_columns."""
        return self.num_columns


class CachedDecoder:
    """Reads B texts token by token: each token passes through the model once.

    The cache's columns are in order of arrival, not of the text: a model with positions in its keys (rotary) or its
    inputs (learned) attends by position ids and mask alone. So one row can begin anew in the middle of the others.
    Nothing is learned through what it says: its tensors are inference tensors, which autograd refuses.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache_argument = cache_argument(model)
        self.cache: Any = None
        self.mask = torch.zeros((0, 0), dtype=torch.long)
        self.length = torch.zeros(0, dtype=torch.long)

    @torch.inference_mode()
    def prefill(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Read texts [B, L] from their start; the model's output, with logits [B, 1, V] of the next token.

        Those that are equal are read once, where that spares enough.
        """
        ids, mask = pack_left(input_ids, attention_mask)
        once = deduplicate(ids, mask, ids.numel())
        if once is not None:
            ids, mask, row = once
        self.cache = Cache(layer_class_to_replicate=PreallocatedLayer)
        self.mask, self.length = mask.long(), mask.long().sum(dim=1)
        output = self._forward(ids, position_ids(mask))
        if once is not None:
            self.select_rows(row)
            output.logits = output.logits[row]
        return output

    @torch.inference_mode()
    def decode_step(self, tokens: Tensor, reads: Tensor | None = None) -> Any:
        """Read one more token of each text, [B]; the model's output, with logits [B, 1, V].

        Where `reads` (bool [B]) is False the text stays as it was, and the logits mean nothing.
        """
        reads = torch.ones_like(tokens, dtype=torch.bool) if reads is None else reads
        self.mask = torch.cat([self.mask, reads[:, None].long()], dim=1)
        self.length = self.length + reads
        return self._forward(tokens[:, None], self.length[:, None] - 1)

    @torch.inference_mode()
    def select_rows(self, rows: Tensor) -> None:
        """Go on with the texts `rows` [K]: the others cost nothing from here on; one may be there several times."""
        self.mask, self.length = self.mask[rows], self.length[rows]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    @torch.inference_mode()
    def reset_rows(self, rows: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Rows `rows` [K] become other texts, read from their start; the model's output for those rows."""
        other = CachedDecoder(self.model)
        output = other.prefill(input_ids, attention_mask)
        width = other.mask.shape[1]
        self._keep_columns(self.mask.any(dim=0), at_least=width)
        self.mask[rows] = 0
        self.mask[rows, :width] = other.mask
        self.length[rows] = other.length
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys[rows, :, :width] = theirs.keys[:, :, :width]
            mine.values[rows, :, :width] = theirs.values[:, :, :width]
        return output

    def _keep_columns(self, used: Tensor, at_least: int) -> None:
        """Drop the columns that no text uses any more; then have `at_least` so many, blank ones added on the right."""
        missing = max(0, at_least - int(used.sum()))
        self.mask = F.pad(self.mask[:, used], (0, missing))
        for layer in self.cache.layers:
            num_columns = layer.num_columns
            layer.keys = F.pad(layer.keys[:, :, :num_columns][:, :, used], (0, 0, 0, missing))
            layer.values = F.pad(layer.values[:, :, :num_columns][:, :, used], (0, 0, 0, missing))
            layer.num_columns = self.mask.shape[1]

    def _forward(self, input_ids: Tensor, positions: Tensor) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=self.mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1 if input_ids.shape[1] == 1 else last_columns(1, input_ids),
            **{self._cache_argument: self.cache},
        )
