"""How long a sequence may be, seen in the look-ups that a model makes in its tables of positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class PositionTables(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches the look-ups in tables during a forward pass of one sequence of T tokens.

    A table of positions is a weight or buffer of the model that is read at consecutive rows, but for those of padding
    tokens. The first row may be another than 0: RoBERTa's kind leaves rows for padding.

    Args:
        model: the model.
        num_tokens: T.

    Attributes:
        limits: the longest sequence that each such table has rows for.
    """

    def __init__(self, model: Any, num_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tables = {(each.data_ptr(), each.shape) for each in (*model.parameters(), *model.buffers())}
        self.num_tokens = num_tokens
        self.limits: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation; looks at its arguments if it reads rows of a table."""
        rows = {
            torch.ops.aten.embedding.default: lambda: (args[0], args[1]),
            torch.ops.aten.index_select.default: lambda: (args[0], args[2]),
            torch.ops.aten.index.Tensor: lambda: (args[0], args[1][0]),
        }.get(func)
        if rows is not None:
            self._look(*rows())
        return func(*args, **(kwargs or {}))

    def _look(self, table: Tensor, rows: Tensor | None) -> None:
        if rows is None or table.ndim != 2 or rows.dtype not in (torch.int32, torch.int64):
            return
        if (table.data_ptr(), table.shape) not in self.tables:  # made for sequences of this length
            return
        # one row, maybe padded to a multiple of a window; matrices are of relative positions
        if rows.numel() < self.num_tokens or rows.shape[:-1] not in ((), (1,)):
            return
        positions = rows.flatten()[: self.num_tokens]
        if int((positions.diff() == 1).sum()) > 2 / 3 * (self.num_tokens - 1):  # a padding token breaks the run
            self.limits.append(len(table) - int(positions[0]))
