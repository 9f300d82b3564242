"""Completions that the reference samples, token by token: for estimates of the optimum, and for checks of a reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.rewards import FinishedCompletions

CHUNK = 256  # completions at a time: a reference with a KV cache keeps one of each


@dataclass(frozen=True)
class ReferenceSamples:
    """K completions of the reference.

    Attributes:
        finished: the completions, as a reward scores them.
        log_probs: float64 [K], log pi_ref(y|x) of each whole completion.
        shaping: float64 [K], the sum of its shaping terms.
    """

    finished: FinishedCompletions
    log_probs: NDArray[np.float64]
    shaping: NDArray[np.float64]


def sample_reference(mdp: TextMDP, prompts: NDArray[np.int64], generator: np.random.Generator) -> ReferenceSamples:
    """Samples a completion of each of some prompts; no reward function is called.

    Args:
        mdp: the task.
        prompts: their indices, [K]; a reference with a KV cache keeps a row of each, see `CHUNK`.
        generator: draws the tokens.
    """
    count, horizon = len(prompts), mdp.max_new_tokens
    state = mdp.empty_state(count)
    mdp.reset_rows(state, np.arange(count), prompts)
    start, live, total = state.copy(), np.ones(count, dtype=np.bool_), np.zeros(count)
    tokens, mask = np.zeros((count, horizon), dtype=np.int64), np.zeros((count, horizon), dtype=np.bool_)
    for t in range(horizon):
        log_probs = mdp.next_ref_log_probs(state)
        chosen = (log_probs + generator.gumbel(size=log_probs.shape)).argmax(axis=1)  # a sample of softmax(log_probs)
        alive = live.nonzero()[0]
        tokens[alive, t], mask[alive, t] = chosen[alive], True
        total[alive] += log_probs[alive, chosen[alive]]
        state.append(alive, chosen[alive], mdp.prompt_width)
        live &= ~mdp.is_eos[chosen]
        if not live.any():
            break
    finished = mdp.finished(state.prompt, state.prompt_text, tokens, mask.sum(axis=1))
    terms = mdp.shaping_terms(mdp.transitions(start, tokens, mask)).values()
    return ReferenceSamples(finished, total, np.zeros(count) + sum(term.sum(axis=1) for term in terms))
