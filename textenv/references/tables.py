"""References: pi_ref(a | s), the distribution that the policy must not stray from.

A reference is anything with

    log_probs(input_ids [B, L], attention_mask [B, L]) -> float [B, V]

the log-probabilities of the next token of each row. Blanks (attention 0) may stand on either side of a row's tokens.
Here: finite-state tables for toys. `textenv.causal_lm` has Hugging Face language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textenv.data import Tokenizer
from textenv.references.incremental import IncrementalInput


class TableReference:
    """A finite-state machine that reads a text token by token and holds a row of log-probabilities a state.

    Args:
        log_probs: [S, V], row s the log-probabilities of the next token in state s (-inf: never). A 1-D array [V] is
            one state, the same distribution everywhere.
        next_state: int [S, V], the state after reading a token; reading starts in state 0. By default a square table
            is a bigram (the state is the last token), and one row stays where it is.

    Raises:
        ValueError: shapes that do not fit, or a row that does not sum to one.

    >>> coin = TableReference(np.log([0.5, 0.25, 0.25]))
    >>> coin.log_probs(np.array([[1, 2]]), np.array([[1, 1]])).round(2).tolist()
    [[-0.69, -1.39, -1.39]]
    """

    def __init__(self, log_probs: ArrayLike, next_state: ArrayLike | None = None) -> None:
        table = np.atleast_2d(np.ascontiguousarray(log_probs, dtype=np.float64))
        states, vocab = table.shape
        if next_state is None:
            if states not in (1, vocab):
                raise ValueError(
                    f"Without next_state a table must have 1 row or one row a token, got shape {table.shape}."
                )
            next_state = np.broadcast_to(np.arange(vocab) if states == vocab else 0, (states, vocab))
        transitions = np.ascontiguousarray(next_state, dtype=np.int64)
        if transitions.shape != table.shape or transitions.min() < 0 or transitions.max() >= states:
            raise ValueError(
                f"next_state must have the table's shape {table.shape} and values in 0 .. {states - 1}, "
                f"got shape {transitions.shape} and values {transitions.min()} .. {transitions.max()}."
            )
        total = np.exp(table).sum(axis=1)
        reads_on = np.isfinite(table).any(axis=1)  # a row of -inf is a state with no continuation
        if not np.allclose(total[reads_on], 1.0, atol=1e-6):
            bad = int(np.argmax(reads_on & ~np.isclose(total, 1.0, atol=1e-6)))
            raise ValueError(f"Each row's probabilities must sum to 1; row {bad} sums to {total[bad]:.6g}.")
        self.table, self.next_state = table, transitions
        self.full_support = bool(np.isfinite(table).all())
        self._input, self._state = IncrementalInput(), np.zeros(0, dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.table.shape[1])

    @classmethod
    def from_completions(cls, tokenizer: Tokenizer, answers: Mapping[str, Mapping[str, float]]) -> TableReference:
        """The reference that answers each prompt with exactly these texts and probabilities, then ends.

        Args:
            tokenizer: turns prompts and answers into ids; its `eos_token_id` closes every answer.
            answers: `{prompt: {answer: probability}}`; the weights of a prompt are normalised to one.
        """
        tree: list[dict[int, int]] = [{}]  # the children of each state: token -> state
        mass: list[dict[int, float]] = [{}]  # the probability that flows along each edge of an answer

        def grow(state: int, token: int, weight: float) -> int:
            if token not in tree[state]:
                tree[state][token] = len(tree)
                tree.append({})
                mass.append({})
            if weight:
                mass[state][token] = mass[state].get(token, 0.0) + weight
            return tree[state][token]

        for prompt, choices in answers.items():
            start = 0
            for token in tokenizer.encode(prompt):
                start = grow(start, token, 0.0)
            for answer, weight in choices.items():
                if weight < 0:
                    raise ValueError(f"A probability must not be negative, got {weight} for {answer!r} ({prompt!r}).")
                state = start
                for token in [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]:
                    state = grow(state, token, weight)

        for prompt, choices in answers.items():
            state = 0
            for token in tokenizer.encode(prompt):
                if token in mass[state]:
                    raise ValueError(f"The prompt {prompt!r} is another prompt followed by the beginning of an answer.")
                state = tree[state][token]
            if not sum(choices.values()) > 0:
                raise ValueError(f"The answers to {prompt!r} must have a positive probability, got {dict(choices)}.")

        nowhere = len(tree)  # where texts go that no answer begins with
        table = np.full((nowhere + 1, len(tokenizer)), -np.inf)
        next_state = np.full((nowhere + 1, len(tokenizer)), nowhere, dtype=np.int64)
        for state, (children, weights) in enumerate(zip(tree, mass, strict=True)):
            next_state[state, list(children)] = list(children.values())
            total = sum(weights.values())
            for token, weight in weights.items():
                table[state, token] = np.log(weight / total)
        return cls(table, next_state)

    def log_probs(self, input_ids: NDArray[Any], attention_mask: NDArray[Any]) -> NDArray[np.float64]:
        """Next-token log-probabilities [B, V] of the rows of `input_ids` [B, L]."""
        follows, unchanged, last = self._input.match(input_ids, attention_mask)
        new = ~(follows | unchanged)
        state = np.zeros(len(input_ids), dtype=np.int64) if new.all() else self._state
        state = np.where(follows, self.next_state[state, last], state)
        if new.any():
            state[new] = self.read(input_ids[new], attention_mask[new])
        self._state = state
        self._input.store(input_ids, attention_mask)
        log_probs: NDArray[np.float64] = self.table[state]
        return log_probs

    def read(self, input_ids: NDArray[Any], attention_mask: NDArray[Any]) -> NDArray[np.int64]:
        """The state [B] after reading each row of `input_ids` [B, L] from its start."""
        state = np.zeros(len(input_ids), dtype=np.int64)
        for column in range(input_ids.shape[1]):
            read = self.next_state[state, input_ids[:, column]]
            state = np.where(attention_mask[:, column] == 1, read, state)
        return state


def uniform(vocab_size: int) -> TableReference:
    """Every token equally likely at every step: the KL to it is log V minus the policy's entropy."""
    return TableReference(np.full(vocab_size, -np.log(vocab_size)))
