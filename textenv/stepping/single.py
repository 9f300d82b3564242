"""SingleEpisode: `EpisodeBatch` with B = 1, with a fast path in Python numbers where the reference is a table."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from textenv.arguments import is_scalar, shown
from textenv.bound_policy import PolicyFunction
from textenv.mdp import InvalidAction, TextMDP
from textenv.stepping.batch import FINISH_REASONS, EpisodeBatch
from textenv.stepping.cursors import TableCursor
from textenv.stepping.tabulated import MAX_TABULATED_COMPLETIONS

SCALAR_TYPES = (int, np.int64)  # action types that need no further check to be a single integer

# One transition: reward, terminated, log pi_ref of the token, the terms of the reward, and what `info` has on the last
# step (empty before it).
ScalarStep = tuple[float, bool, float, dict[str, float], dict[str, Any]]


class SingleEpisode(EpisodeBatch):
    """One episode in progress, for `TextEnv`.

    With a table as the reference, no bound policy and no shaping, a step takes a dozen numbers: `_step_table` does with
    them what `EpisodeBatch.step` does with arrays, with the same results. Arrays of length 1 are several times slower.
    """

    def __init__(self, mdp: TextMDP, policy: PolicyFunction | None = None) -> None:
        super().__init__(mdp, 1, policy)
        self.eos_token_ids = frozenset(mdp.eos_token_ids)
        # the results of `_finish_one` where rewards are pure, by prompt and completion
        self.finished_before: dict[tuple[int, bytes], dict[str, Any]] = {}

    def step_scalar(self, action: Any, illegal_reward: float | None = None) -> ScalarStep:
        """Appends one token and computes its reward; `illegal_reward` is that of `EpisodeBatch.step`."""
        if not self.live[0]:
            raise gym.error.ResetNeeded(
                "No episode is in progress (none has started, or it has ended): call reset() before step()."
            )
        table = self.cursor if type(self.cursor) is TableCursor else None
        if table and self.policy is None and not self.mdp.shaping and type(action) in SCALAR_TYPES:
            return self._step_table(table, int(action), illegal_reward)
        if not is_scalar(action):
            raise InvalidAction(f"An action is one token id, got {shown(action)}.")
        step = self.step(np.asarray(action)[None], illegal_reward)
        self.refresh()
        if step.illegal is not None:
            return self._end_scalar(float(step.rewards[0]))
        final: dict[str, Any] = {}
        if step.final is not None:
            final = {"prompt": step.final.prompt[0], "completion": step.final.completion[0]}
            final |= {"score": float(step.terms["score"][0]), "finish_reason": step.final.finish_reason[0]}
            if step.final.gold_score is not None:
                final["gold_score"] = float(step.final.gold_score[0])
            if step.final.kl is not None:
                final["kl"] = float(step.final.kl[0])
        terms = {name: float(values[0]) for name, values in step.terms.items()}
        return float(step.rewards[0]), bool(step.terminated[0]), float(step.ref_log_prob[0]), terms, final

    def _end_scalar(self, illegal_reward: float) -> ScalarStep:
        """`EpisodeBatch._end_illegal` in numbers."""
        self.live[0] = False
        final = {"prompt": self.state.prompt_text[0], "completion": self.completion(0), "finish_reason": "illegal"}
        return illegal_reward, True, -np.inf, {"illegal": illegal_reward}, final

    def _step_table(self, cursor: TableCursor, token: int, illegal_reward: float | None) -> ScalarStep:
        """`EpisodeBatch.step` in numbers, for a table without bound policy and shaping."""
        mdp, state = self.mdp, self.state
        if not 0 <= token < mdp.vocab_size:
            raise InvalidAction(f"A token id must be in 0 .. {mdp.vocab_size - 1}, got {token}.")
        edge = cursor.table_state.item(0) * mdp.vocab_size + token
        ref_log_prob = cursor.table.table.item(edge)
        if ref_log_prob == -np.inf:
            if illegal_reward is None:
                raise mdp.masked_action_error(state, 0, token)
            return self._end_scalar(illegal_reward)
        time = state.time.item(0)
        stop = token in self.eos_token_ids
        terminated = stop or time == mdp.max_new_tokens - 1
        final = self._finish_one(token, time, stop) if terminated else {}
        terms = mdp.combine_terms(final.get("score", 0.0), ref_log_prob, {})

        # As in `EpisodeBatch.step`, nothing changes before this line.
        cursor.table_state[0] = cursor.table.next_state.item(edge)
        state.input_ids[0, mdp.prompt_width + time] = token
        state.attention_mask[0, mdp.prompt_width + time] = 1
        state.time[0] = time + 1
        self.live[0] = not terminated
        return sum(terms.values()), terminated, ref_log_prob, terms, final

    def _finish_one(self, token: int, time: int, stop: bool) -> dict[str, Any]:
        """`info` of the completion that ends with this token. Where rewards are pure it is computed once and cached."""
        mdp, state, width = self.mdp, self.state, self.mdp.prompt_width
        completion = state.input_ids[:, width : width + time + 1].copy()
        completion[0, time] = token
        key = state.prompt.item(0), completion.tobytes()
        if (cached := self.finished_before.get(key)) is not None:
            return cached
        finished = mdp.finished(state.prompt.copy(), state.prompt_text, completion, np.array([time + 1]))
        final = {
            "prompt": state.prompt_text[0],
            "completion": finished.completions[0],
            "score": mdp.score(finished).item(0),
            "finish_reason": FINISH_REASONS[int(stop)],
        }
        gold_score = mdp.gold_score(finished)
        if gold_score is not None:
            final["gold_score"] = gold_score.item(0)
        if mdp.is_pure and len(self.finished_before) < MAX_TABULATED_COMPLETIONS and key[0] >= 0:
            self.finished_before[key] = final
        return final
