"""Prefix sharing: completions of one prompt process it once (as in Prefix Grouper, Liu et al. 2025, arXiv:2506.05433).

One parallel pass over N completions of T tokens (the last of each is no input) after a prompt of W tokens processes
N (W + T - 1) tokens. Prefix sharing takes two passes: the prompt without its last token, into a KV cache; then every
completion from that token on, with the prompt's keys and values. They process W - 1 + N T tokens. The result is the
same function of the weights and therefore, up to rounding, has the same gradient: autograd sums over the completions
of a prompt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from textenv.lm.attention_masks import has_full_attention, mask_for
from textenv.lm.cache_support import supports_cache
from textenv.lm.inputs import cache_argument, deduplicate, position_ids, rope_settings, trunk_of
from textenv.lm.right_padded import forward_right_padded

# whether prompts that sequences share are computed once, or which these are, see `forward_sequences`
SharePrefix = bool | NDArray[np.int64]


class SharedPrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer for P prompts, [P, heads, W, d], which B rows attend to before their own.

    The keys and values that are copied to each row are not stored, so without a gradient only one layer's exist at a
    time.

    Attributes:
        row: the prompt of each row, [B]; None during the pass over the prompts.
    """

    keys: Any
    values: Any
    row: Any = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Returns for each row its prompt's keys and values, followed by its own."""
        if self.row is None:
            stored: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return stored
        return (
            torch.cat([self.keys[self.row], key_states], dim=2),
            torch.cat([self.values[self.row], value_states], dim=2),
        )


def forward_sequences(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_tokens: int,
    share_prefix: SharePrefix = True,
    **kwargs: object,
) -> Any:
    """Runs sequences [B, L]; processes prompts that several of them share once, where that saves enough tokens.

    Args:
        model: a causal LM, or its trunk.
        input_ids, attention_mask: the sequences, with padding on either side.
        num_tokens: T; the columns before the last T are prompt. The prompt's last token is in the first of the T.
        share_prefix: False where there is no KV cache (gradient checkpointing) or no second pass (sharded weights).
            With True equal prompts are found by their tokens, for which the host waits for an accelerator. Or they are
            known on the host: int64 [B], sequences with the same number have the same prompt.
        **kwargs: further arguments of the model.

    Returns:
        The model's output, for all columns or fewer; the last T are always included.
    """
    if not supports_cache(model):
        kwargs.pop("logits_to_keep", None)  # the columns that are kept differ from row to row
        return forward_right_padded(model, input_ids, attention_mask, num_tokens, **kwargs)
    inputs = {"input_ids": input_ids, "position_ids": position_ids(attention_mask)}
    start, cache = input_ids.shape[1] - num_tokens, None
    # a compiled graph cannot depend on the data
    if share_prefix is not False and start > 0 and not torch.compiler.is_compiling():
        known = None if share_prefix is True else share_prefix
        cache = prefix_cache(model, input_ids[:, :start], attention_mask[:, :start], input_ids.numel(), known)
    if cache is not None:
        inputs = {name: columns[:, start:] for name, columns in inputs.items()}
        kwargs[cache_argument(model)] = cache
    mask = mask_for(model, attention_mask, inputs["input_ids"].shape[1])
    return model(**inputs, attention_mask=mask, use_cache=cache is not None, **kwargs)


def prefix_cache(
    model: Any, input_ids: Tensor, attention_mask: Tensor, total: int, known: NDArray[np.int64] | None = None
) -> Any:
    """Computes keys and values of prompts [B, W], one pass per distinct prompt, with gradient.

    Returns None where that saves too few of `total` tokens, or where keys and values do not determine the completions.
    """
    found = deduplicate(input_ids, attention_mask, total, known)
    if found is None or not supports_prefix_sharing(model.config):
        return None
    ids, mask, row = found
    trunk = trunk_of(model)
    cache: Any = Cache(layer_class_to_replicate=SharedPrefixLayer)
    arguments = {
        "input_ids": ids,
        "attention_mask": mask_for(trunk, mask, ids.shape[1]),
        "position_ids": position_ids(mask),
    }
    trunk(**arguments, use_cache=True, **{cache_argument(trunk): cache})
    for layer in cache.layers:
        layer.row = row
    return cache


def supports_prefix_sharing(config: Any) -> bool:
    """Whether a model's output depends on a prompt only through its keys and values, which later tokens do not change.

    This excludes sliding windows, recurrent states, and rotary positions that depend on the length of the sequence.
    """
    return has_full_attention(config) and not rope_settings(config.get_text_config(), "dynamic", "longrope")
