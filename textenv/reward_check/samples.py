"""The completions on which a reward is checked: N of each of some prompts, sampled once from the reference."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.reference_samples import CHUNK, sample_reference
from textenv.rewards import FinishedCompletions

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """N completions of each of P prompts, K = P N; those of a prompt are contiguous.

    Attributes:
        mdp: the task.
        num_prompts: P.
        finished: the K completions.
        log_probs: log pi_ref(y|x), [K].
        shaping: the sum of the shaping terms, [K].
        seconds: what sampling took.
    """

    mdp: TextMDP
    num_prompts: int
    finished: FinishedCompletions
    log_probs: Array
    shaping: Array
    seconds: float

    def __len__(self) -> int:
        return len(self.finished)

    def by_prompt(self, values: Array) -> Array:
        """Values of the completions, [K], as [P, N]."""
        return values.reshape(self.num_prompts, -1)

    def of_prompts(self, kept: NDArray[np.bool_]) -> Samples:
        """The completions of some of the prompts, given as a mask [P]."""
        rows = np.flatnonzero(np.repeat(kept, len(self) // self.num_prompts))
        parts = (self.finished.select(rows), self.log_probs[rows], self.shaping[rows])
        return Samples(self.mdp, int(kept.sum()), *parts, self.seconds)


def draw_samples(mdp: TextMDP, num_completions: int, max_prompts: int, seed: int) -> Samples:
    """Samples from the reference: `num_completions` of each of at most `max_prompts` prompts, evenly spread."""
    started, generator = time.perf_counter(), np.random.default_rng(seed)
    count = len(mdp.prompts.texts)
    prompts = np.unique(np.linspace(0, count - 1, min(max_prompts, count)).round().astype(np.int64))
    rows = np.repeat(prompts, num_completions)
    parts = [sample_reference(mdp, rows[first : first + CHUNK], generator) for first in range(0, len(rows), CHUNK)]
    finished = [part.finished for part in parts]
    names = ("prompt", "prompt_text", "tokens", "length")
    arrays = [np.concatenate([getattr(each, name) for each in finished]) for name in names]
    log_probs, shaping = (np.concatenate([getattr(part, name) for part in parts]) for name in ("log_probs", "shaping"))
    return Samples(mdp, len(prompts), mdp.finished(*arrays), log_probs, shaping, time.perf_counter() - started)


def is_encodable(mdp: TextMDP, text: str) -> bool:
    """Whether the tokenizer has all words of a text."""
    try:
        mdp.encode_completion(text)
    except ValueError:
        return False
    return True


def encode_completions(mdp: TextMDP, like: FinishedCompletions, texts: list[str]) -> FinishedCompletions | None:
    """Texts as completions of the prompts of `like`; None where the tokenizer lacks a word of one.

    Each is cut at `max_new_tokens`, and ends with an EOS token if there is room.
    """
    tokens = np.zeros((len(texts), mdp.max_new_tokens), dtype=np.int64)
    length = np.zeros(len(texts), dtype=np.int64)
    end = np.flatnonzero(mdp.is_eos)[:1]
    for row, text in enumerate(texts):
        try:
            ids = mdp.encode_completion(text)
        except ValueError:
            return None
        ids = np.concatenate([ids[~mdp.is_eos[ids]], end])[: mdp.max_new_tokens]
        tokens[row, : len(ids)], length[row] = ids, len(ids)
    return mdp.finished(like.prompt, like.prompt_text, tokens, length)


def reference_log_probs(mdp: TextMDP, finished: FinishedCompletions) -> Array:
    """log pi_ref(y|x) of completions of the task's prompts, [K]; -inf where the reference never samples it."""
    reference: Any = mdp.reference
    state = mdp.empty_state(len(finished))
    mdp.reset_rows(state, np.arange(len(finished)), finished.prompt)
    steps = np.arange(finished.tokens.shape[1])
    live = steps < finished.length[:, None]
    if hasattr(reference, "token_log_probs"):
        import torch  # a reference that has this method is a model of torch

        ids, attention = state.input_ids.copy(), state.attention_mask.copy()
        columns = slice(mdp.prompt_width, mdp.prompt_width + live.shape[1])
        ids[:, columns], attention[:, columns] = finished.tokens, live
        width = columns.stop
        inputs = (torch.as_tensor(ids[:, :width]), torch.as_tensor(attention[:, :width]), live.shape[1])
        found = np.asarray(reference.token_log_probs(*inputs).cpu(), dtype=np.float64)
        sums: Array = np.where(live, found, 0.0).sum(axis=1)
        return sums
    total = np.zeros(len(finished))
    for t in range(int(finished.length.max(initial=0))):
        rows = np.flatnonzero(live[:, t] & (total > -np.inf))
        if not len(rows):
            break
        log_probs = mdp.next_ref_log_probs(state)
        total[rows] += log_probs[rows, finished.tokens[rows, t]]
        state.append(rows, finished.tokens[rows, t], mdp.prompt_width)
    return total
