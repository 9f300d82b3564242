"""What is used of the models of transformers, whose own types are not known to a type checker."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class CausalLM(Protocol):
    """A causal language model of transformers, or a `PeftModel` around one.

    Called with `input_ids` [B, L] and further arguments of its own it returns an output with `logits` [B, L, V], of the
    next token at each position. `config.get_text_config()` has `vocab_size` and `hidden_size`.
    """

    @property
    def config(self) -> Any: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, *, input_ids: torch.Tensor, **arguments: object) -> Any: ...

    def get_output_embeddings(self) -> torch.nn.Module | None: ...
