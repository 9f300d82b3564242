"""How often an operator makes the host wait for the device on CUDA."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.standin.memory import on_device

# Operators whose result is on the host, or has a size that depends on numbers of the device.
ALWAYS = {
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount", "histc", "segment_reduce"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "_linalg_check_errors"),
}
FILLING = {"masked_fill", "masked_fill_", "index_fill", "index_fill_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}


def num_waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns how often the host waits in a call, without copies of whole tensors.

    Args:
        name: the operator, without its overload.
        args: its arguments in order.
        kwargs: its other arguments.
    """
    if name in ALWAYS:
        return 1
    if name in INDEXING:
        return len(boolean_indices(args[1]))
    if name in FILLING:
        return int(
            any(on_device(each) and each.dim() == 0 for each in args[2:])
        )  # CUDA passes the number to the kernel
    if name == "repeat_interleave":
        return int(kwargs.get("output_size") is None)
    if name == "multinomial" and (args[1] == 1 or not (args[2:] and args[2])):
        return 2  # are the probabilities valid, and is a row all zero?
    return 0


def boolean_indices(indices: Any) -> list[Any]:
    """The indices that are masks: each becomes positions by `nonzero`."""
    return [i for i in indices if i is not None and i.dtype in (torch.bool, torch.uint8)]
