"""log pi_ref of whole completions: of their tokens, where the sampler has not computed it, and of all tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.functional import widest_float
from textenv import TextMDP
from textenv.references import CausalLMReference

Prefix = NDArray[np.int64] | None  # see `Rollout`


def reference_log_probs(
    mdp: TextMDP, ids: Tensor, attention: Tensor, num_tokens: int, prefix: Prefix = None
) -> tuple[Tensor, Tensor | None]:
    """Returns log pi_ref of the last T columns of sequences [B, L], [B, T], and the mask there, [B, T, V], or None.

    A language model needs one parallel pass, a table one look-up per column. `prefix` is that of `Rollout`.
    """
    reference: Any = mdp.reference
    if mdp.full_support and hasattr(reference, "token_log_probs"):
        return reference.token_log_probs(ids, attention, num_tokens, **_known(reference, prefix)), None
    tokens, log_probs, allowed = ids.cpu().numpy(), [], []
    for column, distribution in _by_column(mdp, ids, attention, num_tokens):
        log_probs.append(np.take_along_axis(distribution, tokens[:, [column]], axis=1)[:, 0])
        if not mdp.full_support:
            allowed.append((distribution > -np.inf) | (attention[:, [column]].cpu().numpy() == 0))
    found = torch.as_tensor(np.stack(log_probs, axis=1), dtype=torch.float32, device=ids.device)
    return found, torch.as_tensor(np.stack(allowed, axis=1), device=ids.device) if allowed else None


def reference_distributions(
    mdp: TextMDP, ids: Tensor, attention: Tensor, num_tokens: int, prefix: Prefix = None
) -> Tensor:
    """Returns log pi_ref(.|s_t) of all V tokens before each of the last T columns of sequences [B, L], [B, T, V]."""
    reference: Any = mdp.reference
    if hasattr(reference, "all_log_probs"):
        found: Tensor = reference.all_log_probs(ids, attention, num_tokens, **_known(reference, prefix))
        return found
    distributions = [distribution for _, distribution in _by_column(mdp, ids, attention, num_tokens)]
    return torch.as_tensor(np.stack(distributions, axis=1), dtype=widest_float(ids.device), device=ids.device)


def _known(reference: object, prefix: Prefix) -> dict[str, Prefix]:
    """The argument `prefix` of our language models, which a reference of somebody else does not have."""
    return {"prefix": prefix} if isinstance(reference, CausalLMReference) else {}


def _by_column(
    mdp: TextMDP, ids: Tensor, attention: Tensor, num_tokens: int
) -> Iterator[tuple[int, NDArray[np.floating[Any]]]]:
    """Each of the last T columns, with log pi_ref(.|s) before it, [B, V]."""
    tokens, mask = ids.cpu().numpy(), attention.cpu().numpy()
    for column in range(tokens.shape[1] - num_tokens, tokens.shape[1]):
        before = np.where(np.arange(tokens.shape[1]) < column, mask, 0)
        yield column, np.asarray(mdp.reference.log_probs(np.where(before == 1, tokens, 0), before))
