"""Slots: texts in progress. The transition core under `TextVectorEnv` and, as the `SingleEpisode` of one text, `TextEnv`.

Small toys are walked instead (`textenv.walk`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import PolicyFunction, log_prob_of
from textenv.mdp import TextMDP
from textenv.state import Array
from textenv.stepping.cursors import make_cursor
from textenv.stepping.prompt_streams import PromptStreams

FINISH_REASONS = np.array(["length", "stop"], dtype=object)  # by whether the last token is an end token


@dataclass
class FinalInfo:
    """What is known of the texts that ended in a step, [B] each; nothing of that is meant for the other rows."""

    prompt: Array
    completion: Array
    gold_score: Array | None
    kl: Array | None
    finish_reason: Array


@dataclass
class StepResult:
    """What a step paid, [B] each; rows in which nothing was `written` are zero."""

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    stepped: NDArray[np.bool_]
    ref_log_prob: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    final: FinalInfo | None

    def restrict_to(self, rows: NDArray[np.bool_]) -> StepResult:
        """What was written in these rows, and its terms, zero in the others; rewards and ends stay those of all."""
        terms = {name: np.where(rows, values, 0.0) for name, values in self.terms.items()}
        return replace(self, stepped=rows, ref_log_prob=np.where(rows, self.ref_log_prob, 0.0), terms=terms)


class EpisodeBatch:
    """B slots, each with a text, and what the reference says of its next token.

    A step is `write` (append tokens, pay rewards, begin anew where a text had ended), then `refresh` (one batched call
    of the reference, unless it is a table). No step loops over rows.
    """

    def __init__(self, mdp: TextMDP, num: int, policy: PolicyFunction | None = None) -> None:
        self.mdp = mdp
        self.bind(policy)
        self.texts = mdp.empty_state(num)
        self.cursor = make_cursor(mdp, self.texts)
        # where each answer begins in the texts seen as one line
        self.begins = np.arange(num) * self.texts.input_ids.shape[1] + mdp.prompt_width
        self.live = np.zeros(num, dtype=np.bool_)  # another array at every step: the last one may be handed out
        self.started = False  # whether every slot has had a text, and so a stream of prompts
        self.streams = PromptStreams(num, len(mdp.prompts.texts))
        self.kl = np.zeros(num)

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        return self.cursor.log_probs

    def bind(self, policy: PolicyFunction | None) -> None:
        """Let this policy's log-probabilities be paid; None: nobody's."""
        if policy is not None and not callable(getattr(policy, "next_token_logits", policy)):
            raise TypeError(f"A policy is called with (input_ids, attention_mask) and answers logits, got {policy!r}.")
        self.policy = policy

    def start(self, rows: Any, options: dict[str, Any] | None = None) -> None:
        """Begin a new text in these rows (indices, or one): a prompt from each slot's stream, or the state that
        `options` names."""
        drawn = self.streams.draw(rows)
        if not options:
            self.mdp.reset_rows(self.texts, rows, drawn)
            self.cursor.begin(rows, drawn)
        else:  # states are whole before anything is changed: a reset that is refused leaves the texts as they were
            if unknown := set(options) - {"prompt", "completion"}:
                raise ValueError(f"reset's options are 'prompt' and 'completion', got {sorted(map(str, unknown))}.")
            prompt, rows, drawn = options.get("prompt"), np.atleast_1d(rows), np.atleast_1d(drawn)
            begun = [(prompt, rows)] if prompt is not None else [(i, rows[drawn == i]) for i in np.unique(drawn)]
            states = [self.mdp.make_state(first, options.get("completion", ())) for first, _ in begun]
            for (_, some), state in zip(begun, states, strict=True):
                self.texts.put(some, state)
            self.cursor.begin(rows, None)
        self.live[rows] = True
        self.kl[rows] = 0.0
        self.started = True

    def refresh(self) -> None:
        """Ask the reference for the next token of every text."""
        self.cursor.refresh(self.live)

    def step(self, actions: Any) -> StepResult:
        """Append one token to every live text and pay for it.

        A slot whose text had ended begins a new one instead: its action does not count, and it is paid nothing.
        """
        if not self.started:
            raise gym.error.ResetNeeded("No text is in progress: call reset() before step().")
        mdp, texts, live = self.mdp, self.texts, self.live
        idle = (~live).nonzero()[0]
        if len(idle) == len(live):
            self.start(idle)
            nothing = np.zeros(len(live))
            return StepResult(nothing, nothing != 0, nothing != 0, nothing, {}, None)
        tokens = mdp.validate_actions(actions, idle, len(live))
        chosen, after = self.cursor.look(tokens)
        chosen[idle] = 0.0
        if not mdp.full_support and chosen.min() == -np.inf:
            bad = int(np.flatnonzero(np.isneginf(chosen))[0])
            raise mdp.masked_action_error(texts, bad, int(tokens[bad]))
        log_prob, kl = None, self.kl
        if self.policy is not None:
            allowed = self.action_mask() == 1
            log_prob = log_prob_of(self.policy, texts.input_ids, texts.attention_mask, tokens, allowed)
            log_prob[idle] = 0.0
            kl = kl + (log_prob - chosen)

        stop = mdp.is_eos.take(tokens)
        terminated = stop | (texts.time == mdp.max_new_tokens - 1)
        terminated[idle] = False
        scores, ending, ended = np.zeros(len(live)), terminated.nonzero()[0], None
        if len(ending):
            scores[ending], ended = self._end(ending, tokens, stop, kl)
        shaped: dict[str, Array] = {}
        if mdp.shaping:
            shaped = mdp.shaping_terms(mdp.transitions(texts, tokens[:, None], live[:, None]))
            shaped = {name: paid[:, 0] for name, paid in shaped.items()}
        terms = mdp.combine_terms(scores, chosen, shaped, log_prob)

        # Nothing is changed before this line: a step that is refused leaves the texts as they were.
        self.cursor.advance(after)
        self.kl, self.live = kl, ~terminated
        if len(idle):
            self.start(idle)
        cell = self.begins + texts.time  # a text that has just begun gets 0 and 0 there, which is what it has
        texts.input_ids.reshape(-1)[cell] = tokens
        texts.attention_mask.reshape(-1)[cell] = live
        texts.time += live
        return StepResult(reduce(np.add, terms.values()), terminated, live, chosen, terms, ended)

    def _end(self, rows: Array, tokens: Array, stop: Array, kl: Array) -> tuple[Array, FinalInfo]:
        """Score the texts that end with these tokens: their answers are put together here and nowhere else."""

        def column(values: Any) -> Array:
            everybody = (np.empty if values.dtype == object else np.zeros)(len(self.live), dtype=values.dtype)
            everybody[rows] = values
            return everybody

        mdp, texts, width = self.mdp, self.texts, self.mdp.prompt_width
        time = texts.time.take(rows)
        length = time + 1
        answers = texts.input_ids.take(rows, axis=0)[:, width : width + int(length.max())]
        answers[np.arange(len(rows)), time] = tokens.take(rows)
        finished = mdp.finished(texts.prompt.take(rows), texts.prompt_text.take(rows), answers, length)
        gold_score = mdp.gold_score(finished)
        return mdp.score(finished), FinalInfo(
            prompt=texts.prompt_text.copy(),
            completion=column(np.array(finished.completions, dtype=object)),
            gold_score=None if gold_score is None else column(gold_score),
            kl=column(kl.take(rows)) if self.policy is not None else None,
            finish_reason=column(FINISH_REASONS.take(stop.take(rows))),
        )

    def observation(self) -> dict[str, Array]:
        """A copy of every text as `input_ids` and `attention_mask`, [B, L]."""
        return {"input_ids": self.texts.input_ids.copy(), "attention_mask": self.texts.attention_mask.copy()}

    def action_mask(self) -> NDArray[np.int8]:
        """int8 [B, V]: 1 where the next token is allowed; all 1 in a text that has ended (no action counts there).

        Where the reference forbids nothing this is one read-only array, the same at every step.
        """
        if self.mdp.full_support:
            return everything(len(self.live), self.mdp.vocab_size)
        allowed: NDArray[np.int8] = (self.cursor.allowed() | ~self.live[:, None]).astype(np.int8)
        return allowed


@cache
def everything(rows: int, vocab_size: int) -> NDArray[np.int8]:
    """The mask that forbids nothing, [B, V] out of V bytes; nobody can write to it."""
    return np.broadcast_to(np.ones(vocab_size, dtype=np.int8), (rows, vocab_size))
