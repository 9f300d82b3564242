"""How a causal language model is read, found by what it does.

What the model computes for one sequence alone is right. Padding, other rows of a batch, a KV cache, and a row of the
cache that was replaced must not change it. Few forward passes over sequences of 32 tokens show whether they do. In
bfloat16 rounding hides small differences; what happens only after 32 tokens is not seen (positions that change there
are known from the config, see `max_length`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from textenv.lm.cached_decoder import CachedDecoder
from textenv.lm.inputs import POSITIONS, base_model, check_predicts_next, max_length, trunk_of
from textenv.lm.position_tables import PositionTables
from textenv.lm.protocols import CausalLM
from textenv.lm.random_state import forked_random_state
from textenv.lm.right_padded import forward_alone, forward_right_padded
from textenv.lm.rounding import precision, rounding_tolerance

LENGTH = 32  # tokens of the sequence that is read alone; two rows of it are 64
COMPILED = "flex_attention"  # cannot be compiled while a dispatch mode watches
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)  # says nothing about a model
ATTRIBUTE = "textenv_supports_cache"  # of a model, with what `find_cache_support` found; copies have it too


def supports_cache(model: Any) -> bool:
    """Whether a causal LM, or its trunk, may be read through a KV cache, see `find_cache_support`."""
    model = base_model(model)
    if not hasattr(model, ATTRIBUTE):
        find_cache_support(model)
    return bool(getattr(model, ATTRIBUTE))


@torch.no_grad()
def find_cache_support(model: CausalLM) -> bool:
    """Finds out how a causal LM must be read, in at most four forward passes of 64 tokens, and keeps it.

    Returns:
        Whether it may be padded on the left, given position ids, and read through a KV cache. Any other is padded on
        the right, without positions, and reads whole sequences for every token (`UncachedDecoder`).

    Raises:
        ValueError: the model attends to later tokens, as an encoder like BERT does, or is a masked language model; what
            it computes for a sequence depends on other rows of a batch; it cannot read one sequence alone; or its
            weights are not finite.
    """
    model = base_model(model)
    ids = _sequence(model)
    with _undisturbed(model):
        tables = PositionTables(model, len(ids))
        with tables if model.config._attn_implementation != COMPILED else nullcontext():
            alone = _read_alone(model, ids)
        if not alone.isfinite().all():
            raise ValueError(f"The weights of the {_name(model)} are not finite: its logits are nan or infinite.")
        supported = _is_right_in_a_cache(model, ids, alone)
        if not supported:
            _check_right_padded(model, ids, alone)
    check_predicts_next(model)
    for module in (model, trunk_of(model)):
        setattr(module, ATTRIBUTE, supported)
        setattr(module, POSITIONS, min(tables.limits, default=None))
    return supported


def assume_cache_support(model: CausalLM) -> None:
    """Keeps that a causal LM may be read through a KV cache, untried: its tensors may have no numbers."""
    for module in (model, trunk_of(model)):
        setattr(module, ATTRIBUTE, True)


def _is_right_in_a_cache(model: CausalLM, ids: Tensor, alone: Tensor) -> bool:
    """Whether company in a KV cache leaves the logits of sequences as they are alone.

    Two beginnings of the sequence are prefilled. Then one row is replaced by a third beginning, and both are continued.
    """
    long, short, other = _beginnings(len(ids))
    decoder = CachedDecoder(model)
    rows = torch.zeros(2, long, dtype=torch.long, device=ids.device)
    mask = torch.zeros_like(rows)
    for row, length in enumerate((long, short)):
        rows[row, long - length :], mask[row, long - length :] = ids[:length], 1
    try:
        logits = decoder.prefill(rows, mask).logits[:, -1]
        tolerance = _tolerance(alone, noise=_distance(alone[long - 1], logits[0]))  # that row is not padded
        if _distance(alone[[long - 1, short - 1]], logits) > tolerance:
            return False
        second, new = torch.tensor([1], device=ids.device), ids[None, :other]
        first = decoder.reset_rows(second, new, torch.ones_like(new)).logits[:, -1]
        then = decoder.decode_step(ids[[long, other]]).logits[:, -1]
    except OUT_OF_MEMORY:
        raise
    except Exception:  # whatever a model does that takes no positions, or has no such cache
        return False
    return _distance(alone[[other - 1, long, other]], torch.cat([first, then])) <= tolerance


def _check_right_padded(model: CausalLM, ids: Tensor, alone: Tensor) -> None:
    """Checks that neither a second row nor later tokens, which padding is, change what the model computes."""
    length = _beginnings(len(ids))[1]
    rows = torch.stack([ids, torch.cat([ids[:length], ids.flip(0)[: len(ids) - length]])])
    lengths = torch.tensor([len(ids), length], device=ids.device)
    mask = (torch.arange(len(ids), device=ids.device) < lengths[:, None]).long()
    try:
        logits = forward_right_padded(model, rows, mask, len(ids)).logits
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        raise ValueError(f"{_name(model)} reads one sequence, but not two in a batch: {_told(error)}") from error
    if (distance := _distance(alone, logits[0])) > _tolerance(alone):
        raise ValueError(
            f"{_name(model)} cannot be used: what it computes for a sequence depends on the rest of the batch, or on "
            f"chance (logits of one sequence, alone and beside another one, differ by {distance:.2g})."
        )
    others = (_read_alone(model, ids[:length]), logits[1, :length])
    if (distance := max(_distance(alone[:length], other) for other in others)) > _tolerance(alone):
        raise ValueError(
            f"{_name(model)} attends to later tokens, so it is not a causal language model (an encoder?): they change "
            f"the logits of earlier ones by {distance:.2g}."
        )


def _sequence(model: CausalLM) -> Tensor:
    """Token ids [L] of a sequence, special tokens among them, which some models treat in a way of their own."""
    config = model.config.get_text_config()
    length = min(LENGTH, max_length(model) or LENGTH)
    ids = torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(0))
    special = (getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos"))
    for place, token in enumerate(special, start=1):
        if isinstance(token, int) and 0 <= token < config.vocab_size and length > 3 * place:
            ids[3 * place] = token
    return ids.to(model.device)


def _beginnings(length: int) -> tuple[int, int, int]:
    """Lengths of three beginnings of a sequence, each shorter than it."""
    return length - 1, max(1, (length - 1) // 3), max(1, (length - 1) // 2)


def _read_alone(model: CausalLM, ids: Tensor) -> Tensor:
    try:
        logits: Tensor = forward_alone(model, ids[None]).logits[0]
    except OUT_OF_MEMORY:
        raise
    except Exception as error:
        raise ValueError(f"{_name(model)} cannot read a sequence of tokens alone: {_told(error)}") from error
    return logits


def _distance(logits: Tensor, others: Tensor) -> float:
    """The largest difference, apart from a constant that the softmax takes away."""
    one, other = (x - x.mean(dim=-1, keepdim=True) for x in (logits.cpu().double(), others.cpu().double()))
    return float((one - other).abs().max())


def _tolerance(logits: Tensor, noise: float = math.inf) -> float:
    """How far rounding may bring logits apart: no further than ten times what it was seen to do."""
    spread = float(logits.max() - logits.min())
    return min(rounding_tolerance(logits, logits.dtype), 4 * precision(logits.dtype) * spread + 10 * noise)


def _name(model: CausalLM) -> str:
    return type(model).__name__


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Without dropout, and with all bits of float32, so that no rounding looks like a dependence.

    The model's mode, the precision of products and the global generators are left as they were.
    """
    training = [module for module in model.modules() if module.training]
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    model.eval()
    try:
        with forked_random_state(model.device):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module in training:
            module.training = True
