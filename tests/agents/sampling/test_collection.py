"""The parts of `collect`: trim, and what is assembled of it."""

from __future__ import annotations

import torch

from agents.sampling import Generation
from agents.sampling.collection import completion_mask, trim


def test_trim_cuts_the_columns_that_no_row_uses() -> None:
    """W = 4, T = 5: one column of padding of all prompts goes, and the two after the longest completion."""
    attention = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0, 0]])
    ids = torch.arange(18).view(2, 9)
    log_probs, values = torch.arange(10.0).view(2, 5), torch.arange(10.0, 20.0).view(2, 5)
    mask = torch.arange(30).view(2, 5, 3) % 2 == 0
    trimmed = trim(Generation(ids, attention, log_probs, action_mask=mask, values=values), prompt_width=4)
    assert torch.equal(trimmed.input_ids, ids[:, 1:7]) and torch.equal(trimmed.attention_mask, attention[:, 1:7])
    assert torch.equal(trimmed.log_probs, log_probs[:, :3]) and trimmed.ref_log_probs is None
    assert trimmed.values is not None and torch.equal(trimmed.values, values[:, :3])
    assert trimmed.action_mask is not None and torch.equal(trimmed.action_mask, mask[:, :3])
    assert completion_mask(trimmed).tolist() == [[True, True, False], [True, True, True]]
    full = trim(Generation(ids, torch.ones_like(attention), log_probs), prompt_width=4)  # control: nothing to cut
    assert torch.equal(full.input_ids, ids) and full.log_probs.shape == (2, 5)
