"""EpisodeBatch: B episodes in progress, on arrays; `step` composes one step of any task.

The same step exists twice more, for speed: `SingleEpisode._step_table` for one episode with a table as the reference,
and `TabulatedBatch.step` for small tasks whose rewards have `score_tokens` (of ours, Toy-v0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import PolicyFunction, action_log_probs, check_policy
from textenv.mdp import TextMDP
from textenv.state import Array
from textenv.stepping.cursors import make_cursor
from textenv.stepping.prompt_streams import PromptStreams

FINISH_REASONS = np.array(["length", "stop"], dtype=object)  # indexed by whether the last token is an EOS token


@dataclass
class FinalInfo:
    """The completions that a step finished, [B] each; only rows that terminated are meaningful.

    Attributes:
        prompt: the prompts as text.
        completion: the completions as text.
        gold_score: their gold scores; None where the task has no gold reward.
        kl: sum_t (log pi - log pi_ref) over each completion; None without a bound policy.
        finish_reason: "stop" (EOS), "length" (`max_new_tokens`) or "illegal" (a masked action).
    """

    prompt: Array
    completion: Array
    gold_score: Array | None
    kl: Array | None
    finish_reason: Array


@dataclass
class StepResult:
    """One transition of each of B episodes.

    Attributes:
        rewards: float64 [B], r_t, the sum of `terms`.
        terminated: bool [B], whether the transition ended the episode.
        stepped: bool [B], False in rows that were reset instead of stepped; their numbers are zero.
        ref_log_prob: float64 [B], log pi_ref(a_t | s_t).
        terms: the terms of r_t, float64 [B] each; empty where no row was stepped.
        final: the completions that ended, None if there are none.
        illegal: bool [B], the rows that a masked action ended, None if there are none: they have a reward, log pi_ref =
            -inf and no terms.
    """

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    stepped: NDArray[np.bool_]
    ref_log_prob: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    final: FinalInfo | None
    illegal: NDArray[np.bool_] | None = None

    def restrict_to(self, rows: NDArray[np.bool_]) -> StepResult:
        """Zeroes `stepped`, `ref_log_prob`, `terms` and `illegal` outside these rows; other fields keep all rows."""
        terms = {name: np.where(rows, values, 0.0) for name, values in self.terms.items()}
        illegal = None if self.illegal is None else self.illegal & rows
        ref_log_prob = np.where(rows, self.ref_log_prob, 0.0)
        return replace(self, stepped=rows, ref_log_prob=ref_log_prob, terms=terms, illegal=illegal)


class EpisodeBatch:
    """B episodes in progress: their states, and log pi_ref of their next tokens.

    A step is `step` (append tokens, compute rewards, reset the rows whose episode had ended), then `refresh` (one
    batched call of the reference, unless it is a table). No step loops over rows.
    """

    def __init__(self, mdp: TextMDP, num: int, policy: PolicyFunction | None = None) -> None:
        self.mdp = mdp
        self.bind(policy)
        self.state = mdp.empty_state(num)
        self.cursor = make_cursor(mdp, self.state)
        # the index of each row's first completion token in the flattened `input_ids`
        self.completion_start = np.arange(num) * self.state.input_ids.shape[1] + mdp.prompt_width
        self.live = np.zeros(num, dtype=np.bool_)  # replaced, not changed, by `step`: a `StepResult` holds the last one
        self.started = False  # whether every row has had an episode, and so a stream of prompts
        self.streams = PromptStreams(num, len(mdp.prompts.texts))
        self.kl = np.zeros(num)

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        return self.cursor.log_probs

    def bind(self, policy: PolicyFunction | None) -> None:
        """Includes this policy's log-probabilities in the reward; None: no policy's."""
        check_policy(policy)
        self.policy = policy

    def start(self, rows: Any, options: dict[str, Any] | None = None) -> None:
        """Starts an episode in these rows (indices, or one), in the state that `options` names.

        A row's stream gives the prompt where `options` has none.
        """
        drawn = self.streams.draw(rows)
        if not options:
            self.mdp.reset_rows(self.state, rows, drawn)
            self.cursor.reset_rows(rows, drawn)
        else:  # all states are made before anything changes: a refused reset leaves the episodes as they were
            prompt, rows, drawn = options.get("prompt"), np.atleast_1d(rows), np.atleast_1d(drawn)
            groups = [(prompt, rows)] if prompt is not None else [(i, rows[drawn == i]) for i in np.unique(drawn)]
            states = [self.mdp.make_state(first, options.get("completion", ())) for first, _ in groups]
            for (_, group), state in zip(groups, states, strict=True):
                self.state.put(group, state)
            self.cursor.reset_rows(rows, None)
        self.live[rows] = True
        self.kl[rows] = 0.0
        self.started = True

    def refresh(self) -> None:
        """Brings log pi_ref up to date with the states."""
        self.cursor.refresh(self.live)

    def step(self, actions: Any, illegal_reward: float | None = None) -> StepResult:
        """Appends one token to every live episode and computes the rewards.

        Rows whose episode had ended start a new one instead: their actions are ignored, their rewards are zero.
        A masked action raises `InvalidAction`; with an `illegal_reward` it ends its episode with that reward instead.
        """
        if not self.started:
            raise gym.error.ResetNeeded("No episode is in progress: call reset() before step().")
        mdp, state, live = self.mdp, self.state, self.live
        idle = (~live).nonzero()[0]
        tokens = mdp.validate_actions(actions, idle, len(live))
        if len(idle) == len(live):
            self.start(idle)
            zeros = np.zeros(len(live))
            return StepResult(zeros, zeros != 0, zeros != 0, zeros, {}, None)
        ref_log_prob, after = self.cursor.lookup(tokens)
        ref_log_prob[idle] = 0.0
        illegal = None
        if not mdp.full_support and ref_log_prob.min() == -np.inf:
            illegal = np.isneginf(ref_log_prob)
            if illegal_reward is None:
                bad = int(illegal.argmax())
                raise mdp.masked_action_error(state, bad, int(tokens[bad]))
            tokens[illegal], ref_log_prob[illegal] = 0, 0.0
            live = live & ~illegal
        log_prob, kl = None, self.kl
        if self.policy is not None and live.any():
            allowed = self.action_mask() == 1
            log_prob = action_log_probs(self.policy, state.input_ids, state.attention_mask, tokens, allowed, live)
            kl = kl + (log_prob - ref_log_prob)

        stop = mdp.is_eos.take(tokens)
        terminated = (stop | (state.time == mdp.max_new_tokens - 1)) & live
        scores, ending, final = np.zeros(len(live)), terminated.nonzero()[0], None
        if len(ending):
            scores[ending], final = self._finish(ending, tokens, stop, kl)
        shaping: dict[str, Array] = {}
        if mdp.shaping:
            shaping = mdp.shaping_terms(mdp.transitions(state, tokens[:, None], live[:, None]))
            shaping = {name: values[:, 0] for name, values in shaping.items()}
        terms = mdp.combine_terms(scores, ref_log_prob, shaping, log_prob)

        # Nothing changes before this line: a refused step leaves the episodes as they were.
        self.cursor.advance(after)
        self.kl, self.live = kl, ~terminated
        if len(idle):
            self.start(idle)
        # Rows that have just started are at t = 0: they get token 0 and attention 0 in a column that is empty already.
        cell = self.completion_start + state.time
        state.input_ids.reshape(-1)[cell] = tokens
        state.attention_mask.reshape(-1)[cell] = live
        state.time += live
        step = StepResult(reduce(np.add, terms.values()), terminated, live, ref_log_prob, terms, final)
        if illegal is None or illegal_reward is None:
            return step
        return self._end_illegal(step, illegal, illegal_reward)

    def _end_illegal(self, step: StepResult, illegal: NDArray[np.bool_], reward: float) -> StepResult:
        """Ends the episodes in the rows `illegal`, which `step` left unchanged: this reward, no token, no score."""
        self.live = self.live & ~illegal
        final = step.final
        if final is None:
            completion, finish_reason = np.full((2, len(illegal)), None, dtype=object)
            final = FinalInfo(self.state.prompt_text.copy(), completion, None, None, finish_reason)
        final.completion[illegal] = [self.completion(row) for row in illegal.nonzero()[0].tolist()]
        final.finish_reason[illegal] = "illegal"
        return replace(
            step,
            rewards=np.where(illegal, reward, step.rewards),
            terminated=step.terminated | illegal,
            stepped=step.stepped | illegal,
            ref_log_prob=np.where(illegal, -np.inf, step.ref_log_prob),
            final=final,
            illegal=illegal,
        )

    def completion(self, row: int) -> str:
        """The completion so far of one row, as text."""
        width = self.mdp.prompt_width
        return self.mdp.decode(self.state.input_ids[row, width : width + self.state.time[row]])

    def _finish(self, rows: Array, tokens: Array, stop: Array, kl: Array) -> tuple[Array, FinalInfo]:
        """Scores the completions that end with these tokens, [K]; and their `FinalInfo`."""

        def scatter(values: Any) -> Array:
            column = (np.empty if values.dtype == object else np.zeros)(len(self.live), dtype=values.dtype)
            column[rows] = values
            return column

        mdp, state, width = self.mdp, self.state, self.mdp.prompt_width
        time = state.time.take(rows)
        length = time + 1
        completions = state.input_ids.take(rows, axis=0)[:, width : width + int(length.max())]
        completions[np.arange(len(rows)), time] = tokens.take(rows)
        finished = mdp.finished(state.prompt.take(rows), state.prompt_text.take(rows), completions, length)
        gold_score = mdp.gold_score(finished)
        return mdp.score(finished), FinalInfo(
            prompt=state.prompt_text.copy(),
            completion=scatter(np.array(finished.completions, dtype=object)),
            gold_score=None if gold_score is None else scatter(gold_score),
            kl=scatter(kl.take(rows)) if self.policy is not None else None,
            finish_reason=scatter(FINISH_REASONS.take(stop.take(rows))),
        )

    def observation(self) -> dict[str, Array]:
        """A copy of `input_ids` and `attention_mask`, [B, L]."""
        return {"input_ids": self.state.input_ids.copy(), "attention_mask": self.state.attention_mask.copy()}

    def action_mask(self) -> NDArray[np.int8]:
        """int8 [B, V]: 1 where the next token is allowed; all 1 where the episode has ended and no action counts.

        Where the reference masks nothing this is one read-only array, the same at every step.
        """
        if self.mdp.full_support:
            return full_action_mask(len(self.live), self.mdp.vocab_size)
        allowed: NDArray[np.int8] = (self.cursor.allowed() | ~self.live[:, None]).astype(np.int8)
        return allowed


@cache
def full_action_mask(rows: int, vocab_size: int) -> NDArray[np.int8]:
    """The mask that allows every token, [B, V] on V bytes of memory; read-only."""
    return np.broadcast_to(np.ones(vocab_size, dtype=np.int8), (rows, vocab_size))
