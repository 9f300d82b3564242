"""The states that sampling starts from: prompts, or states in the middle of completions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.sampling.rollout import Rollout
from textenv import TextMDP, TextState


def sample_prompts(mdp: TextMDP, n: int, num_generations: int, generator: torch.Generator) -> TextState:
    """Returns `n` initial states: n / num_generations prompts, drawn uniformly, each num_generations times."""
    if n < 1 or num_generations < 1 or n % num_generations:
        raise ValueError(f"n must be a positive multiple of num_generations, got {n} and {num_generations}.")
    number = len(mdp.prompts.texts)
    drawn = torch.randint(number, (n // num_generations,), generator=generator, device=generator.device)
    state = mdp.empty_state(n)
    mdp.reset_rows(state, np.arange(n), drawn.repeat_interleave(num_generations).cpu().numpy())
    return state


def states_after(mdp: TextMDP, rollout: Rollout, row: Tensor, time: Tensor, copies: int) -> TextState:
    """Returns the states s_{t+1} after token `time[i]` of completion `row[i]`; the `copies` of each are contiguous."""
    rows = row.repeat_interleave(copies).cpu().numpy()
    lengths = (time + 1).repeat_interleave(copies).cpu().numpy()
    state = mdp.empty_state(len(rows))
    width, horizon = mdp.prompt_width, rollout.num_tokens
    prompt_columns = rollout.input_ids.shape[1] - horizon  # a rollout's prompts are cut to the longest of them
    kept = np.arange(horizon) < lengths[:, None]
    ids, attention = rollout.input_ids.cpu().numpy()[rows], rollout.attention_mask.cpu().numpy()[rows]
    state.input_ids[:, width - prompt_columns : width] = ids[:, :prompt_columns]
    state.attention_mask[:, width - prompt_columns : width] = attention[:, :prompt_columns]
    state.input_ids[:, width : width + horizon] = np.where(kept, ids[:, prompt_columns:], 0)
    state.attention_mask[:, width : width + horizon] = kept
    state.prompt[:] = rollout.prompt.cpu().numpy()[rows]
    state.prompt_text[:] = rollout.prompts[rows]
    state.time[:] = lengths
    return state
