"""Several answers to one prompt: the prompt is read once (as in Prefix Grouper, Liu et al. 2025, arXiv:2506.05433).

To read N answers of T tokens, but for the last of each, after a prompt of W is N (W + T - 1) tokens in one parallel
pass. Here there are two: the prompt but for its last token, into a KV cache; then each answer from that token on, with
its prompt's keys and values: W - 1 + N T tokens. It is the same function of the weights, and so the same gradient:
autograd adds up what a prompt gets from its answers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from textenv.kv_reader import cache_argument, distinct, position_ids


def reading(
    model: Any, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, share: bool = True
) -> dict[str, Any]:
    """What `model` is to be called with to read texts [B, L]; where it is worth it, prompts have been read by then.

    The last `num_tokens` columns of what it says are those of the texts, either way.

    Args:
        model: a causal LM, or its trunk.
        input_ids, attention_mask: the texts.
        num_tokens: T, the columns after the prompts.
        share: False where there can be no KV cache (gradient checkpointing), or no two passes (sharded weights).
    """
    positions, start = position_ids(attention_mask), input_ids.shape[1] - num_tokens
    cache: Any = None
    if share and (found := distinct(input_ids[:, :start], attention_mask[:, :start], input_ids.numel())):
        ids, mask, row = found
        cache = prompt_cache(model, ids, mask)
    if cache is None:
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": positions,
            "use_cache": False,
        }
    cache.batch_select_indices(row)
    return {
        "input_ids": input_ids[:, start:],
        "attention_mask": attention_mask,
        "position_ids": positions[:, start:],
        "use_cache": True,
        cache_argument(model): cache,
    }


def prompt_cache(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Keys and values of texts [P, W], with gradient; None if the model remembers anything else, or not all columns."""
    cache: Any = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    trunk_of(model)(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids(attention_mask),
        use_cache=True,
        **{cache_argument(model): cache},
    )
    return cache


def trunk_of(model: Any) -> Any:
    """A causal LM without its output layer; of a trunk, itself."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
