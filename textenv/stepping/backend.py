"""Backends: the states of B episodes in progress, and what the next token of each does.

`EpisodeBatch.step` is the one step; a backend holds the states that it reads and changes. `ReferenceBackend` takes any
task and state, `TableBackend` a task whose reference is a table, `TabulatedBackend` one that was enumerated beforehand.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.state import Array, Rows, TextState
from textenv.stepping.reference import ReferenceBackend
from textenv.stepping.results import FinalInfo
from textenv.stepping.table import TableBackend
from textenv.stepping.tabulated import TabulatedBackend, small_tree


class Backend(Protocol):
    """The states of B episodes. `look_up` and `finish` change nothing, so that a step can be refused after them."""

    calls_reference: bool
    """Whether `refresh` calls the reference, which may raise after a step has changed the states."""

    @property
    def state(self) -> TextState:
        """A copy of the states, one per row."""

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""

    def start(self, rows: Rows, prompts: Rows) -> None:
        """Sets rows (indices, or one) to s_0 of the prompts with these indices."""

    def refresh(self, live: NDArray[np.bool_]) -> None:
        """Brings log pi_ref up to date with the states of the rows that are `live`."""

    def look_up(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """log pi_ref of one token per row, [B]; and what `finish` and `commit` need to know of them, int64 [B]."""

    def finish(
        self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], FinalInfo | None]:
        """Which `live` rows these tokens end, [B]; score(x, y) there and 0 elsewhere, [B]; and their `FinalInfo`."""

    def commit(self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]) -> None:
        """Appends these tokens to the `live` rows."""

    def observation(self) -> dict[str, Array]:
        """A copy of `input_ids` and `attention_mask`, [B, L]."""

    def generalize(self) -> ReferenceBackend:
        """A backend with the same states, itself or another, that has `put` for any state."""


def make_backend(mdp: TextMDP, num: int) -> Backend:
    """The fastest backend for a task: its tree is enumerated if it is small and everything in it can be tabulated."""
    if type(mdp.reference) is not TableReference:  # a subclass may compute other log-probabilities than its table's
        return ReferenceBackend(mdp, num)
    if (tree := small_tree(mdp)) is not None:
        return TabulatedBackend(mdp, num, tree)
    return TableBackend(mdp, num)
