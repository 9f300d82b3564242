"""One parallel forward pass over completions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.activations import NewGELUActivation

from textenv.lm.inputs import last_columns
from textenv.lm.prefix_sharing import SharePrefix, forward_sequences
from textenv.lm.protocols import CausalLM

# Logits in memory together where only the tokens' log-probabilities are kept: 2^26 float32 are 256 MiB.
MAX_LOGITS = 2**26


class FusedGELU(NewGELUActivation):
    """GPT-2's activation in one kernel instead of eight; in double precision bit-identical to transformers' own."""

    def forward(self, x: Tensor) -> Tensor:
        """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
        own: Tensor = super().forward(x) if x.dtype == torch.float64 else F.gelu(x, approximate="tanh")
        return own


def fuse_activations(model: Any) -> Any:
    """Replaces transformers' activation by `FusedGELU` in place and returns the model: saves 1/8 of a GPT-2 update."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, FusedGELU())
    return model


def forward_completions(
    model: CausalLM,
    input_ids: Tensor,
    attention_mask: Tensor,
    num_tokens: int,
    share_prefix: SharePrefix = True,
    **kwargs: object,
) -> Any:
    """Runs sequences [B, L] in parallel; returns the model's output, with logits [B, T, V] of the last T columns.

    logits[:, t] predict the token in column L - T + t from the columns before it, so the last column is not an input.
    Prompts that several sequences share are processed once, unless `share_prefix` is False, see `forward_sequences`.
    """
    output = forward_sequences(
        model,
        input_ids[:, :-1],
        attention_mask[:, :-1],
        num_tokens,
        share_prefix,
        logits_to_keep=num_tokens if torch.is_grad_enabled() else last_columns(num_tokens, input_ids),
        **kwargs,
    )
    output.logits = output.logits[:, -num_tokens:]  # some models do not know `logits_to_keep`
    return output
