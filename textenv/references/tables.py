"""References of toys: finite-state tables of log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from textenv.data import Tokenizer, encode_beginning, fill_holes
from textenv.references.incremental import IncrementalInput
from textenv.state import Array


class TableReference:
    """A finite-state machine over tokens, with one row of next-token log-probabilities per state.

    Args:
        log_probs: [S, V], row s the log-probabilities of the next token in state s (-inf: never). A 1-D array [V] is
            one state, the same distribution everywhere.
        next_state: int [S, V], the state after a token; every sequence begins in state 0. By default a square table is
            a bigram (the state is the last token), and a table of one row keeps its state.

    Raises:
        ValueError: shapes do not fit, or the probabilities of a row do not sum to one.

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
                    f"Without next_state a table must have 1 row or one row per token, got shape {table.shape}."
                )
            next_state = np.broadcast_to(np.arange(vocab) if states == vocab else 0, (states, vocab))
        transitions = np.ascontiguousarray(next_state, dtype=np.int64)
        if transitions.shape != table.shape or transitions.min() < 0 or transitions.max() >= states:
            raise ValueError(
                f"next_state must have the table's shape {table.shape} and values in 0 .. {states - 1}, "
                f"got shape {transitions.shape} and values {transitions.min()} .. {transitions.max()}."
            )
        total = np.exp(table).sum(axis=1)
        continues = np.isfinite(table).any(axis=1)  # a row of -inf is a state with no continuation
        if not np.allclose(total[continues], 1.0, atol=1e-6):
            bad = int(np.argmax(continues & ~np.isclose(total, 1.0, atol=1e-6)))
            raise ValueError(f"Each row's probabilities must sum to 1; row {bad} sums to {total[bad]:.6g}.")
        self.table, self.next_state = table, transitions
        self.full_support = bool(np.isfinite(table).all())
        self._input, self._state = IncrementalInput(), np.zeros(0, dtype=np.int64)

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.table.shape[1])

    @classmethod
    def from_completions(cls, tokenizer: Tokenizer, completions: Mapping[str, Mapping[str, float]]) -> TableReference:
        """Returns the reference that gives each prompt exactly these completions, with these probabilities.

        Args:
            tokenizer: encodes prompts and completions; its `eos_token_id` ends every completion.
            completions: `{prompt: {completion: probability}}`; the weights of a prompt are normalized to one.
        """
        tokenizer = fill_holes(tokenizer)
        tree: list[dict[int, int]] = [{}]  # the children of each state: token -> state
        mass: list[dict[int, float]] = [{}]  # the probability of each edge that belongs to a completion

        def grow(state: int, token: int, weight: float) -> int:
            if token not in tree[state]:
                tree[state][token] = len(tree)
                tree.append({})
                mass.append({})
            if weight:
                mass[state][token] = mass[state].get(token, 0.0) + weight
            return tree[state][token]

        for prompt, choices in completions.items():
            start = 0
            for token in encode_beginning(prompt, tokenizer).ids:
                start = grow(start, token, 0.0)
            for completion, weight in choices.items():
                if weight < 0:
                    raise ValueError(
                        f"A probability must not be negative, got {weight} for {completion!r} ({prompt!r})."
                    )
                state = start
                for token in [*tokenizer.encode(completion, add_special_tokens=False), tokenizer.eos_token_id]:
                    state = grow(state, token, weight)

        for prompt, choices in completions.items():
            state = 0
            for token in encode_beginning(prompt, tokenizer).ids:
                if token in mass[state]:
                    raise ValueError(
                        f"The prompt {prompt!r} is another prompt followed by the beginning of a completion."
                    )
                state = tree[state][token]
            if not sum(choices.values()) > 0:
                raise ValueError(
                    f"The completions of {prompt!r} must have a positive probability, got {dict(choices)}."
                )

        off_tree = len(tree)  # the state of every sequence that is not in the tree
        table = np.full((off_tree + 1, len(tokenizer)), -np.inf)
        next_state = np.full((off_tree + 1, len(tokenizer)), off_tree, dtype=np.int64)
        for state, (children, weights) in enumerate(zip(tree, mass, strict=True)):
            next_state[state, list(children)] = list(children.values())
            total = sum(weights.values())
            for token, weight in weights.items():
                table[state, token] = np.log(weight / total)
        return cls(table, next_state)

    def log_probs(self, input_ids: Array, attention_mask: Array) -> NDArray[np.float64]:
        """Next-token log-probabilities [B, V] of the rows of `input_ids` [B, L]."""
        extended, unchanged, last = self._input.match(input_ids, attention_mask)
        new = ~(extended | unchanged)
        state = np.zeros(len(input_ids), dtype=np.int64) if new.all() else self._state
        state = np.where(extended, self.next_state[state, last], state)
        if new.any():
            state[new] = self.final_state(input_ids[new], attention_mask[new])
        self._state = state
        self._input.store(input_ids, attention_mask)
        log_probs: NDArray[np.float64] = self.table[state]
        return log_probs

    def final_state(self, input_ids: Array, attention_mask: Array) -> NDArray[np.int64]:
        """The state [B] at the end of each row of `input_ids` [B, L], from its first token on."""
        state = np.zeros(len(input_ids), dtype=np.int64)
        for column in range(input_ids.shape[1]):
            following = self.next_state[state, input_ids[:, column]]
            state = np.where(attention_mask[:, column] == 1, following, state)
        return state


def uniform(vocab_size: int) -> TableReference:
    """The uniform distribution at every step: the KL to it is log V minus the policy's entropy."""
    return TableReference(np.full(vocab_size, -np.log(vocab_size)))
