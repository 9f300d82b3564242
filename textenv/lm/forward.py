"""One parallel forward pass over completions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from textenv.lm.inputs import last_columns
from textenv.lm.prefix_sharing import forward_sequences


class FusedGELU(NewGELUActivation):
    """GPT-2's activation in one kernel instead of eight; in double precision transformers' own, to the last bit."""

    def forward(self, x: Tensor) -> Tensor:
        """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
        own: Tensor = super().forward(x) if x.dtype == torch.float64 else F.gelu(x, approximate="tanh")
        return own


def fuse_activations(model: Any) -> Any:
    """Put `FusedGELU` in the place of transformers' in a model, and return it: an eighth of an update of GPT-2."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, FusedGELU())
    return model


def forward_completions(
    model: Any, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, share_prefix: bool = True, **kwargs: Any
) -> Any:
    """Read texts [B, L] in parallel: the model's output, with logits [B, T, V] for the last T columns.

    logits[:, t] is what the model says *before* it reads column L - T + t, so the last column is not read at all.
    Prompts that several texts have in common are read once, before them (`textenv.prefix`), unless `share` is False.
    """
    return forward_sequences(
        model,
        input_ids[:, :-1],
        attention_mask[:, :-1],
        num_tokens,
        share_prefix,
        logits_to_keep=num_tokens if torch.is_grad_enabled() else last_columns(num_tokens, input_ids),
        **kwargs,
    )


# Logits held at once when only a token's log-probability is wanted: 2^26 float32 are 256 MiB.
MAX_LOGITS = 2**26
