"""Readings: what the reference says of the next token in each of B texts, kept up with them as they grow.

Any reference is asked once a step, for all texts in one call (`ReferenceCursor`). A table need not be asked: the state of its
machine is carried along, and a step looks up one number a text, whatever the vocabulary (`TableCursor`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Array, TextState


class ReferenceCursor:
    """Any reference; `log_probs` [B, V] is what it said when it was last asked."""

    def __init__(self, mdp: TextMDP, texts: TextState) -> None:
        self.mdp, self.texts = mdp, texts
        self.rows = np.arange(len(texts))
        self.log_probs: Array = np.broadcast_to(0.0, (len(texts), mdp.vocab_size))

    def look(self, tokens: Array) -> tuple[NDArray[np.float64], Any]:
        """log pi_ref of a token a text, [B]; and what `advance` wants to know."""
        return self.log_probs[self.rows, tokens].astype(np.float64), None

    def advance(self, after: Any) -> None:
        """The tokens that were looked at have been written."""

    def begin(self, rows: Any, prompt: Any) -> None:
        """These rows hold other texts now: the prompts with these indices, or (None) any texts."""

    def refresh(self, live: Array) -> None:
        """Every text stands where it will be looked at next; where none is `live` there is nothing to ask."""
        if live.any():
            self.log_probs = self.mdp.next_ref_log_probs(self.texts)

    def allowed(self) -> NDArray[np.bool_]:
        """The next tokens that have a probability, [B, V]."""
        return self.log_probs > -np.inf


class TableCursor:
    """A table; `state` [B] is where its machine stands in each text."""

    def __init__(self, table: TableReference, mdp: TextMDP, texts: TextState) -> None:
        self.table, self.texts, self.vocab_size = table, texts, mdp.vocab_size
        self.first = table.read(mdp.prompts.input_ids, mdp.prompts.attention_mask)
        self.state = np.zeros(len(texts), dtype=np.int64)

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """What the table says of every next token, [B, V]."""
        log_probs: NDArray[np.float64] = self.table.table[self.state]
        return log_probs

    def look(self, tokens: Array) -> tuple[NDArray[np.float64], Any]:
        """log pi_ref of a token a text, [B]; and the states after these tokens."""
        edge = self.state * self.vocab_size + tokens  # in the tables seen as one line
        return self.table.table.take(edge), self.table.next_state.take(edge)

    def advance(self, after: Any) -> None:
        """The tokens that were looked at have been written."""
        self.state = after

    def begin(self, rows: Any, prompt: Any) -> None:
        """These rows hold other texts now: the prompts with these indices, or (None) any texts."""
        if prompt is None:
            self.state[rows] = self.table.read(self.texts.input_ids[rows], self.texts.attention_mask[rows])
        else:
            self.state[rows] = self.first.take(prompt)

    def refresh(self, live: Array) -> None:
        """Nothing is asked."""

    def allowed(self) -> NDArray[np.bool_]:
        """The next tokens that have a probability, [B, V]."""
        return self.log_probs > -np.inf


def make_cursor(mdp: TextMDP, texts: TextState) -> ReferenceCursor | TableCursor:
    """The reading of the process's reference."""
    if type(mdp.reference) is TableReference:  # a kind of table that answers in its own way is asked
        return TableCursor(mdp.reference, mdp, texts)
    return ReferenceCursor(mdp, texts)
