"""log pi_ref of whole completions, where the sampler has not computed it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv import TextMDP


def reference_log_probs(mdp: TextMDP, ids: Tensor, attention: Tensor, num_tokens: int) -> tuple[Tensor, Tensor | None]:
    """Returns log pi_ref of the last T columns of sequences [B, L], [B, T], and the mask there, [B, T, V], or None.

    A language model needs one parallel pass, a table one look-up per column.
    """
    reference: Any = mdp.reference
    if mdp.full_support and hasattr(reference, "token_log_probs"):
        return reference.token_log_probs(ids, attention, num_tokens), None
    tokens, mask = ids.cpu().numpy(), attention.cpu().numpy()
    log_probs, allowed = [], []
    for column in range(tokens.shape[1] - num_tokens, tokens.shape[1]):
        before = np.where(np.arange(tokens.shape[1]) < column, mask, 0)
        distribution = reference.log_probs(np.where(before == 1, tokens, 0), before)
        log_probs.append(np.take_along_axis(distribution, tokens[:, [column]], axis=1)[:, 0])
        if not mdp.full_support:
            allowed.append((distribution > -np.inf) | (mask[:, [column]] == 0))
    found = torch.as_tensor(np.stack(log_probs, axis=1), dtype=torch.float32, device=ids.device)
    return found, torch.as_tensor(np.stack(allowed, axis=1), device=ids.device) if allowed else None
