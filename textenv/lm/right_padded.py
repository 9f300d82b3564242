"""Reading whole sequences without positions, mask and cache, as every causal model can: nothing comes before a token.

Padding on the right is later tokens, which a causal model does not see.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from textenv.lm.inputs import base_model, position_ids


def forward_alone(model: Any, input_ids: Tensor, **kwargs: object) -> Any:
    """Runs sequences of one length [B, L], without padding; returns the model's output."""
    if "use_cache" in inspect.signature(base_model(model).forward).parameters:
        kwargs["use_cache"] = False
    return model(input_ids=input_ids, **kwargs)


def forward_right_padded(
    model: Any, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, **kwargs: object
) -> Any:
    """Runs sequences [B, L], with padding anywhere, after it was moved to the right.

    Returns:
        The model's output; logits and last hidden states are those of the last T columns of `input_ids`, [B, T, ...].
    """
    order = (1 - attention_mask.long()).argsort(dim=1, stable=True)
    width = int(attention_mask.sum(dim=1).max())
    output = forward_alone(model, input_ids.gather(1, order[:, :width]), **kwargs)
    place = position_ids(attention_mask)[:, -num_tokens:, None]  # where each token went
    for name in ("logits", "last_hidden_state"):
        if output.get(name) is not None:
            output[name] = output[name].take_along_dim(place, 1)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = (output["hidden_states"][-1].take_along_dim(place, 1),)
    return output
