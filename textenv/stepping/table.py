"""TableBackend: a table as the reference; no step calls it, whatever V is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Rows, TextState
from textenv.stepping.reference import ReferenceBackend


class TableBackend(ReferenceBackend):
    """As `ReferenceBackend`; `table_state` [B] is the state of the table's finite-state machine in each row."""

    calls_reference = False

    def __init__(self, mdp: TextMDP, num: int) -> None:
        super().__init__(mdp, num)
        assert isinstance(mdp.reference, TableReference)
        self.table = mdp.reference
        # after each prompt, [P]
        self.initial_table_state = self.table.final_state(mdp.prompts.input_ids, mdp.prompts.attention_mask)
        self.table_state = np.zeros(num, dtype=np.int64)

    @property
    def ref_log_probs(self) -> NDArray[np.float64]:
        """log pi_ref(. | s_t), [B, V]."""
        log_probs: NDArray[np.float64] = self.table.table[self.table_state]
        return log_probs

    def start(self, rows: Rows, prompts: Rows) -> None:
        """Sets rows (indices, or one) to s_0 of the prompts with these indices."""
        self.mdp.reset_rows(self.states, rows, prompts)
        self.table_state[rows] = self.initial_table_state.take(prompts)

    def put(self, rows: Rows, states: TextState) -> None:
        """Sets rows to these states; one state is broadcast."""
        self.states.put(rows, states)
        self.table_state[rows] = self.table.final_state(self.states.input_ids[rows], self.states.attention_mask[rows])

    def refresh(self, live: NDArray[np.bool_]) -> None:
        """No-op: log-probabilities are tabulated."""

    def look_up(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """log pi_ref of one token per row, [B]; and the table states after these tokens, [B]."""
        edge = self.table_state * self.mdp.vocab_size + tokens  # index into the flattened tables
        return self.table.table.take(edge), self.table.next_state.take(edge)

    def commit(self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]) -> None:
        """Appends these tokens, and takes over the table states after them."""
        super().commit(tokens, after, live)
        self.table_state = after
