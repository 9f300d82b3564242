"""Cursors: log pi_ref of the next token of B states, kept up to date as the episodes advance.

`ReferenceCursor` calls the reference once per step, with all states in one batch. `TableCursor` makes no call: it
carries the state of the table's finite-state machine, so that a step looks up one number per row, whatever V is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Array, TextState


class ReferenceCursor:
    """Any reference; `log_probs` [B, V] is the result of the last call of it."""

    def __init__(self, mdp: TextMDP, state: TextState) -> None:
        self.mdp, self.state = mdp, state
        self.rows = np.arange(len(state))
        self.known: Array | None = np.broadcast_to(0.0, (len(state), mdp.vocab_size))

    @property
    def log_probs(self) -> Array:
        """log pi_ref of every next token, [B, V]; calls the reference where no result is known."""
        if self.known is None:
            self.known = self.mdp.next_ref_log_probs(self.state)
        return self.known

    def lookup(self, tokens: Array) -> tuple[NDArray[np.float64], Any]:
        """log pi_ref of one token per row, [B]; and the argument of `advance`."""
        return self.log_probs[self.rows, tokens].astype(np.float64), None

    def advance(self, after: Any) -> None:
        """No-op: `refresh` reads the states after the tokens of `lookup`."""

    def reset_rows(self, rows: Any, prompt: Any) -> None:
        """Forgets the result of the last call; `refresh` reads the new states."""
        self.known = None

    def refresh(self, live: Array) -> None:
        """Calls the reference on the current states, unless none is `live`."""
        if live.any():
            self.known = None  # stays so if the reference raises
            self.known = self.mdp.next_ref_log_probs(self.state)

    def allowed(self) -> NDArray[np.bool_]:
        """The next tokens of positive probability, [B, V]."""
        return self.log_probs > -np.inf


class TableCursor:
    """A table; `table_state` [B] is the state of its finite-state machine in each row."""

    def __init__(self, table: TableReference, mdp: TextMDP, state: TextState) -> None:
        self.table, self.state, self.vocab_size = table, state, mdp.vocab_size
        # after each prompt, [P]
        self.initial_table_state = table.final_state(mdp.prompts.input_ids, mdp.prompts.attention_mask)
        self.table_state = np.zeros(len(state), dtype=np.int64)

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """log pi_ref of every next token, [B, V]."""
        log_probs: NDArray[np.float64] = self.table.table[self.table_state]
        return log_probs

    def lookup(self, tokens: Array) -> tuple[NDArray[np.float64], Any]:
        """log pi_ref of one token per row, [B]; and the table states after these tokens, the argument of `advance`."""
        edge = self.table_state * self.vocab_size + tokens  # index into the flattened tables
        return self.table.table.take(edge), self.table.next_state.take(edge)

    def advance(self, after: Any) -> None:
        """Takes over the table states that `lookup` returned."""
        self.table_state = after

    def reset_rows(self, rows: Any, prompt: Any) -> None:
        """Sets rows to the prompts with these indices, or (None) to what `state` holds there."""
        if prompt is None:
            self.table_state[rows] = self.table.final_state(self.state.input_ids[rows], self.state.attention_mask[rows])
        else:
            self.table_state[rows] = self.initial_table_state.take(prompt)

    def refresh(self, live: Array) -> None:
        """No-op: log-probabilities are tabulated."""

    def allowed(self) -> NDArray[np.bool_]:
        """The next tokens of positive probability, [B, V]."""
        return self.log_probs > -np.inf


def make_cursor(mdp: TextMDP, state: TextState) -> ReferenceCursor | TableCursor:
    """The cursor for the task's reference, over the rows of `state`, which is updated in place."""
    if type(mdp.reference) is TableReference:  # a subclass may compute other log-probabilities than its table's
        return TableCursor(mdp.reference, mdp, state)
    return ReferenceCursor(mdp, state)
