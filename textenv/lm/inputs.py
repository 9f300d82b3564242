"""Inputs of a causal language model: positions, padding, distinct rows, and arguments that depend on the model."""

from __future__ import annotations

import inspect
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from textenv.lm.devices import to_device
from textenv.lm.protocols import CausalLM

# The least number, and the least fraction, of tokens to save before sharing is worth its overhead. On a CPU and a GPT-2
# of two layers a second pass costs as much as a few hundred tokens; attention to a cache costs a little more.
MIN_SAVED_TOKENS, MIN_SAVED_FRACTION = 512, 1 / 8
POSITIONS = "num_positions"  # attribute of a model: the longest sequence that its tables of positions have rows for


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that left padding shifts nothing. [B, L]."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def pack_left(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Moves all padding to the left and drops columns that are padding in every row."""
    width = int(attention_mask.sum(dim=1).max())
    order = attention_mask.long().argsort(dim=1, stable=True)[:, -width:]
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def last_columns(number: int, like: Tensor) -> Tensor:
    """`logits_to_keep` of the last `number` columns, on the device of `like`, for passes without a gradient.

    With an int the model slices. PyTorch multiplies a slice by a frozen output layer row by row, and on a CPU in
    bfloat16 copies that layer for each row. Indexed columns are contiguous.
    """
    return torch.arange(-number, 0, device=like.device)


def is_causal_lm(model: object) -> TypeGuard[CausalLM]:
    """Whether it is a module of transformers with an output layer, or a `PeftModel` around one."""
    return isinstance(model, nn.Module) and getattr(model, "get_output_embeddings", lambda: None)() is not None


def check_predicts_next(model: CausalLM) -> None:
    """Raises a ValueError for a masked language model: transformers declares what a class predicts.

    Its behaviour does not show it: as a decoder (`is_decoder`) such a model attends to earlier tokens only, and has
    logits at each position, but they are of the token there.
    """
    kind = type(base_model(model)).__name__
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values() and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ValueError(
            f"{kind} is a masked language model, which predicts hidden tokens: use a causal language model, which "
            "predicts the next one (AutoModelForCausalLM)."
        )


def base_model(model: Any) -> Any:
    """Returns the model inside an adapter, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def trunk_of(model: Any) -> Any:
    """Returns the part of a causal LM below its output layer, which computes hidden states; a trunk itself.

    Raises:
        ValueError: no module of its own computes them.
    """
    model = base_model(model)
    trunk = model.base_model  # the model itself where transformers knows no such part
    if trunk is model and model.get_output_embeddings() is not None:
        trunk = next((child for child in model.children() if isinstance(child, PreTrainedModel)), None)
    if trunk is None:
        raise ValueError(f"{type(model).__name__} has no part that computes hidden states without the output layer.")
    return trunk


def max_length(model: Any) -> int | None:
    """The number of tokens that a model has positions for, at least 2; None where it has no limit.

    Where the positions of all rows of a batch change as one of them exceeds the original context (LongRoPE, Ding et al.
    2024, arXiv:2402.13753), that context is the limit. `find_cache_support` sets `POSITIONS` for models that use fewer
    positions than their config says.
    """
    model = base_model(model)
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    lengths.append(getattr(model, POSITIONS, None))
    lengths += [each.get("original_max_position_embeddings") for each in rope_settings(config, "dynamic", "longrope")]
    return min((length for length in lengths if isinstance(length, int) and length > 1), default=None)  # XLNet's is -1


def rope_settings(config: Any, *kinds: str) -> list[dict[str, Any]]:
    """The settings of rotary positions of some kinds (`rope_type`): of all layers, or of each layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [each for each in (rope, *rope.values()) if isinstance(each, dict) and each.get("rope_type") in kinds]


def cache_argument(model: Any) -> str:
    """The name of the model's KV-cache argument: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(base_model(model).forward).parameters else "past_key_values"


def deduplicate(
    input_ids: Tensor, attention_mask: Tensor, total: int, known: NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Finds the distinct rows of sequences [B, W]. The host waits for an accelerator, unless they are known.

    Args:
        input_ids, attention_mask: the sequences.
        total: the number of tokens that are processed without it.
        known: int64 [B] on the host: sequences with the same number are equal. None: they are compared.

    Returns:
        `(input_ids [P, W], attention_mask [P, W], row [B])` with `row` the index of each sequence's distinct row; None
        if processing only those saves too few of `total` tokens.
    """
    enough = max(MIN_SAVED_TOKENS, MIN_SAVED_FRACTION * total)
    if input_ids.numel() < enough:
        return None
    if known is not None:
        _, first, row_of = np.unique(known, return_index=True, return_inverse=True)
        if input_ids.numel() - len(first) * input_ids.shape[1] < enough:
            return None
        some = to_device(first, input_ids.device)
        return input_ids[some], attention_mask[some], to_device(row_of, input_ids.device)
    distinct, row = torch.unique(torch.where(attention_mask == 1, input_ids, -1), dim=0, return_inverse=True)
    if input_ids.numel() - distinct.numel() < enough:
        return None
    return distinct.clamp(min=0), (distinct >= 0).to(attention_mask.dtype), row
