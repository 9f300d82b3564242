"""Slot: one text in progress, stepped in Python's numbers where a table says all that there is to know."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from textenv.bound_policy import PolicyFunction
from textenv.mdp import InvalidAction, TextMDP
from textenv.stepping.batch import FINISH_REASONS, EpisodeBatch
from textenv.stepping.cursors import TableCursor
from textenv.stepping.tabulated import MAX_TABULATED_COMPLETIONS

NUMBERS = (int, np.int64)  # the types of an action that are at once known to be one number

# What one token was paid: the reward, whether it was the text's last, log pi_ref, the reward's terms, and what is known
# of the text if it has ended.
Move = tuple[float, bool, float, dict[str, float], dict[str, Any]]


class SingleEpisode(EpisodeBatch):
    """`EpisodeBatch` of one text.

    With a table as the reference, no bound policy and no shaping, a step is a dozen numbers: `_step_table` does with
    them what `write` does with arrays, to the same texts. Arrays of one number take several times as long.
    """

    def __init__(self, mdp: TextMDP, policy: PolicyFunction | None = None) -> None:
        super().__init__(mdp, 1, policy)
        self.eos_token_ids = frozenset(mdp.eos_token_ids)
        self.known: dict[tuple[int, bytes], dict[str, Any]] = {}  # what texts that ended before were told

    def step_scalar(self, action: Any) -> Move:
        """Append one token and pay for it."""
        if not self.live[0]:
            raise gym.error.ResetNeeded(
                "No text is in progress (none begun, or it has ended): call reset() before step()."
            )
        table = self.cursor if type(self.cursor) is TableCursor else None
        if table and self.policy is None and not self.mdp.shaping and type(action) in NUMBERS:
            return self._step_table(table, int(action))
        if np.ndim(action) != 0:
            raise InvalidAction(f"An action is one token id, got {action!r}.")
        step = self.step(np.asarray(action)[None])
        self.refresh()
        ended: dict[str, Any] = {}
        if step.final is not None:
            ended = {"prompt": step.final.prompt[0], "completion": step.final.completion[0]}
            ended |= {"score": float(step.terms["score"][0]), "finish_reason": step.final.finish_reason[0]}
            if step.final.gold_score is not None:
                ended["gold_score"] = float(step.final.gold_score[0])
            if step.final.kl is not None:
                ended["kl"] = float(step.final.kl[0])
        terms = {name: float(values[0]) for name, values in step.terms.items()}
        return float(step.rewards[0]), bool(step.terminated[0]), float(step.ref_log_prob[0]), terms, ended

    def _step_table(self, cursor: TableCursor, token: int) -> Move:
        """`write` of one number, where a table, its end and the length of the text are all that matters."""
        mdp, texts = self.mdp, self.texts
        if not 0 <= token < mdp.vocab_size:
            raise InvalidAction(f"A token id must be in 0 .. {mdp.vocab_size - 1}, got {token}.")
        edge = cursor.state.item(0) * mdp.vocab_size + token
        ref_log_prob = cursor.table.table.item(edge)
        if ref_log_prob == -np.inf:
            raise mdp.masked_action_error(texts, 0, token)
        time = texts.time.item(0)
        stop = token in self.eos_token_ids
        terminated = stop or time == mdp.max_new_tokens - 1
        ended = self._finish_one(token, time, stop) if terminated else {}
        terms = mdp.combine_terms(ended.get("score", 0.0), ref_log_prob, {})

        # As in `write`, nothing is changed before this line.
        cursor.state[0] = cursor.table.next_state.item(edge)
        texts.input_ids[0, mdp.prompt_width + time] = token
        texts.attention_mask[0, mdp.prompt_width + time] = 1
        texts.time[0] = time + 1
        self.live[0] = not terminated
        return sum(terms.values()), terminated, ref_log_prob, terms, ended

    def _finish_one(self, token: int, time: int, stop: bool) -> dict[str, Any]:
        """What is known of the text that ends with this token; where the same is always said, one is asked but once."""
        mdp, texts, width = self.mdp, self.texts, self.mdp.prompt_width
        answer = texts.input_ids[:, width : width + time + 1].copy()
        answer[0, time] = token
        text = texts.prompt.item(0), answer.tobytes()
        if (known := self.known.get(text)) is not None:
            return known
        finished = mdp.finished(texts.prompt.copy(), texts.prompt_text, answer, np.array([time + 1]))
        ended = {
            "prompt": texts.prompt_text[0],
            "completion": finished.completions[0],
            "score": mdp.score(finished).item(0),
            "finish_reason": FINISH_REASONS[int(stop)],
        }
        gold_score = mdp.gold_score(finished)
        if gold_score is not None:
            ended["gold_score"] = gold_score.item(0)
        if mdp.is_pure and len(self.known) < MAX_TABULATED_COMPLETIONS and text[0] >= 0:
            self.known[text] = ended
        return ended
