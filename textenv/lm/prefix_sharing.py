"""Several answers to one prompt: the prompt is read once (as in Prefix Grouper, Liu et al. 2025, arXiv:2506.05433).

To read N answers of T tokens, but for the last of each, after a prompt of W is N (W + T - 1) tokens in one parallel
pass. Here there are two: the prompt but for its last token, into a KV cache; then each answer from that token on, with
its prompt's keys and values: W - 1 + N T tokens. It is the same function of the weights, and so, but for rounding, the
same gradient: autograd adds up what a prompt gets from its answers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from textenv.lm.inputs import base_model, cache_argument, deduplicate, position_ids


class SharedPrefixLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer for P prompts, [P, heads, W, d], which B rows attend to before their own.

    What a row takes from its prompt is not kept here, so that of all layers one is there at that size.

    Attributes:
        row: which prompt each row has, [B]; None while the prompts are read.
    """

    keys: Any
    values: Any
    row: Any = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The prompts' for each row, and then its own."""
        if self.row is None:
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states, *args, **kwargs)
            return found
        return (
            torch.cat([self.keys[self.row], key_states], dim=2),
            torch.cat([self.values[self.row], value_states], dim=2),
        )


def forward_sequences(
    model: Any, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, share_prefix: bool = True, **kwargs: Any
) -> Any:
    """Read texts [B, L], or of those with a prompt in common the rest of each, where that spares enough.

    Args:
        model: a causal LM, or its trunk.
        input_ids, attention_mask: the texts, blanks on either side.
        num_tokens: T; columns before the last T are prompt. The last token of a prompt is in the first of these.
        share: False where there can be no KV cache (gradient checkpointing), or no second pass (sharded weights).
        **kwargs: further arguments of the model.

    Returns:
        The model's output: of all columns or fewer, the last T among them.
    """
    texts = {"input_ids": input_ids, "position_ids": position_ids(attention_mask)}
    start, cache = input_ids.shape[1] - num_tokens, None
    if (
        share_prefix and start > 0 and not torch.compiler.is_compiling()
    ):  # for which nothing may depend on what is found
        cache = prefix_cache(model, input_ids[:, :start], attention_mask[:, :start], input_ids.numel())
    if cache is not None:
        texts = {name: columns[:, start:] for name, columns in texts.items()}
        kwargs[cache_argument(model)] = cache
    return model(**texts, attention_mask=attention_mask, use_cache=cache is not None, **kwargs)


def prefix_cache(model: Any, input_ids: Tensor, attention_mask: Tensor, total: int) -> Any:
    """Keys and values of prompts [B, W], each read once, with gradient.

    None where that spares too little of `total` tokens, or the keys and values are not all that must be known of them.
    """
    found = deduplicate(input_ids, attention_mask, total)
    if found is None or not supports_prefix_sharing(model.config):
        return None
    ids, mask, row = found
    trunk = base_model(model).base_model
    cache: Any = Cache(layer_class_to_replicate=SharedPrefixLayer)
    arguments = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask)}
    trunk(**arguments, use_cache=True, **{cache_argument(trunk): cache})
    if cache.get_seq_length() != ids.shape[1]:  # a model that has no cache says nothing of it
        return None
    for layer in cache.layers:
        layer.row = row
    return cache


def supports_prefix_sharing(config: Any) -> bool:
    """Whether what a model says depends on a prompt by keys and values of all its tokens, which no later one changes.

    Not where windows slide or a state goes on, nor where positions are turned by how long a text becomes.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = {each.get("rope_type") for each in (rope, *rope.values()) if isinstance(each, dict)}  # or one a layer type
    layers = DynamicCache(config=config).layers
    return not kinds & {"dynamic", "longrope"} and all(type(layer) is DynamicLayer for layer in layers)
