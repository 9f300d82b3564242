"""ReferenceBackend: any task and any state; the reference is called once per step, with all states in one batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from textenv.mdp import TextMDP
from textenv.state import Array, Rows, TextState
from textenv.stepping.results import FINISH_REASONS, FinalInfo


class ReferenceBackend:
    """B states as arrays, and log pi_ref of their next tokens by the last call of the reference; see `Backend`."""

    calls_reference = True  # so that `refresh` may raise

    def __init__(self, mdp: TextMDP, num: int) -> None:
        self.mdp = mdp
        self.states = mdp.empty_state(num)
        self.rows = np.arange(num)
        self.known: Array | None = np.broadcast_to(0.0, (num, mdp.vocab_size))  # None: the reference must be called

    @property
    def state(self) -> TextState:
        """A copy of the states."""
        return self.states.copy()

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]; calls the reference where no result is known."""
        if self.known is None:
            self.known = self.mdp.next_ref_log_probs(self.state)
        return self.known

    def start(self, rows: Rows, prompts: Rows) -> None:
        """Sets rows (indices, or one) to s_0 of the prompts with these indices."""
        self.mdp.reset_rows(self.states, rows, prompts)
        self.known = None

    def put(self, rows: Rows, states: TextState) -> None:
        """Sets rows to these states; one state is broadcast."""
        self.states.put(rows, states)
        self.known = None

    def refresh(self, live: NDArray[np.bool_]) -> None:
        """Calls the reference on the current states, unless none is `live`."""
        if live.any():
            self.known = None  # stays so if the reference raises
            self.known = self.mdp.next_ref_log_probs(self.state)

    def look_up(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """log pi_ref of one token per row, [B]; and these tokens, all that `finish` and `commit` need to know."""
        return self.ref_log_probs[self.rows, tokens].astype(np.float64), tokens

    def finish(
        self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], NDArray[np.float64], FinalInfo | None]:
        """Ends episodes at an EOS token or at `max_new_tokens`; decodes and scores the completions that end."""
        mdp, state, width = self.mdp, self.states, self.mdp.prompt_width
        stop = mdp.is_eos.take(tokens)
        terminated = (stop | (state.time == mdp.max_new_tokens - 1)) & live
        scores, rows = np.zeros(len(live)), terminated.nonzero()[0]
        if len(rows) == 0:
            return terminated, scores, None
        time = state.time.take(rows)
        completions = state.input_ids.take(rows, axis=0)[:, width : width + int(time.max()) + 1]
        completions[np.arange(len(rows)), time] = tokens.take(rows)
        finished = mdp.finished(state.prompt.take(rows), state.prompt_text.take(rows), completions, time + 1)
        gold_score = mdp.gold_score(finished)
        scores[rows] = mdp.score(finished)
        completion, finish_reason = np.full((2, len(live)), None, dtype=object)
        completion[rows], finish_reason[rows] = finished.completions, FINISH_REASONS.take(stop.take(rows))
        final = FinalInfo(state.prompt_text.copy(), completion, finish_reason)
        if gold_score is not None:
            final.gold_score = np.zeros(len(live))
            final.gold_score[rows] = gold_score
        return terminated, scores, final

    def commit(self, tokens: NDArray[np.int64], after: NDArray[np.int64], live: NDArray[np.bool_]) -> None:
        """Appends these tokens to the `live` rows; `refresh` reads the new states."""
        rows = live.nonzero()[0]
        self.states.append(rows, tokens[rows], self.mdp.prompt_width)

    def observation(self) -> dict[str, Array]:
        """A copy of `input_ids` and `attention_mask`, [B, L]."""
        return {"input_ids": self.states.input_ids.copy(), "attention_mask": self.states.attention_mask.copy()}

    def generalize(self) -> ReferenceBackend:
        """Itself."""
        return self
