"""Slot: one text in progress, stepped in Python's numbers where a table says all that there is to know."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from textenv.bound_policy import PolicyFunction
from textenv.mdp import InvalidAction, TextProcess
from textenv.stepping.batch import FINISH_REASONS, Slots
from textenv.stepping.cursors import Carried
from textenv.stepping.tabulated import FEW

NUMBERS = (int, np.int64)  # the types of an action that are at once known to be one number

# What one token was paid: the reward, whether it was the text's last, log pi_ref, the reward's terms, and what is known
# of the text if it has ended.
Move = tuple[float, bool, float, dict[str, float], dict[str, Any]]


class Slot(Slots):
    """`Slots` of one text.

    With a table as the reference, no bound policy and no shaping, a step is a dozen numbers: `_write_number` does with
    them what `write` does with arrays, to the same texts. Arrays of one number take several times as long.
    """

    def __init__(self, process: TextProcess, policy: PolicyFunction | None = None) -> None:
        super().__init__(process, 1, policy)
        self.eos_token_ids = frozenset(process.eos_token_ids)
        self.known: dict[tuple[int, bytes], dict[str, Any]] = {}  # what texts that ended before were told

    def write_one(self, action: Any) -> Move:
        """Append one token and pay for it."""
        if not self.live[0]:
            raise gym.error.ResetNeeded(
                "No text is in progress (none begun, or it has ended): call reset() before step()."
            )
        table = self.reading if type(self.reading) is Carried else None
        if table and self.policy is None and not self.process.shaping and type(action) in NUMBERS:
            return self._write_number(table, int(action))
        if np.ndim(action) != 0:
            raise InvalidAction(f"An action is one token id, got {action!r}.")
        step = self.write(np.asarray(action)[None])
        self.refresh()
        ended: dict[str, Any] = {}
        if step.ended is not None:
            ended = {"prompt": step.ended.prompt[0], "response": step.ended.response[0]}
            ended |= {"score": float(step.terms["score"][0]), "finish_reason": step.ended.finish_reason[0]}
            if step.ended.gold_score is not None:
                ended["gold_score"] = float(step.ended.gold_score[0])
            if step.ended.kl is not None:
                ended["kl"] = float(step.ended.kl[0])
        terms = {name: float(values[0]) for name, values in step.terms.items()}
        return float(step.rewards[0]), bool(step.terminated[0]), float(step.ref_log_prob[0]), terms, ended

    def _write_number(self, reading: Carried, token: int) -> Move:
        """`write` of one number, where a table, its end and the length of the text are all that matters."""
        process, texts = self.process, self.texts
        if not 0 <= token < process.vocab_size:
            raise InvalidAction(f"A token id must be in 0 .. {process.vocab_size - 1}, got {token}.")
        edge = reading.state.item(0) * process.vocab_size + token
        ref_log_prob = reading.table.table.item(edge)
        if ref_log_prob == -np.inf:
            raise process.forbidden(texts, 0, token)
        time = texts.time.item(0)
        stop = token in self.eos_token_ids
        terminated = stop or time == process.max_new_tokens - 1
        ended = self._end_one(token, time, stop) if terminated else {}
        terms = process.terms(ended.get("score", 0.0), ref_log_prob, {})

        # As in `write`, nothing is changed before this line.
        reading.state[0] = reading.table.next_state.item(edge)
        texts.input_ids[0, process.prompt_width + time] = token
        texts.attention_mask[0, process.prompt_width + time] = 1
        texts.time[0] = time + 1
        self.live[0] = not terminated
        return sum(terms.values()), terminated, ref_log_prob, terms, ended

    def _end_one(self, token: int, time: int, stop: bool) -> dict[str, Any]:
        """What is known of the text that ends with this token; where the same is always said, one is asked but once."""
        process, texts, width = self.process, self.texts, self.process.prompt_width
        answer = texts.input_ids[:, width : width + time + 1].copy()
        answer[0, time] = token
        text = texts.prompt.item(0), answer.tobytes()
        if (known := self.known.get(text)) is not None:
            return known
        finished = process.finished(texts.prompt.copy(), texts.prompt_text, answer, np.array([time + 1]))
        ended = {
            "prompt": texts.prompt_text[0],
            "response": finished.completions[0],
            "score": process.score(finished).item(0),
            "finish_reason": FINISH_REASONS[int(stop)],
        }
        gold_score = process.gold_score(finished)
        if gold_score is not None:
            ended["gold_score"] = gold_score.item(0)
        if process.is_pure and len(self.known) < FEW and text[0] >= 0:
            self.known[text] = ended
        return ended
