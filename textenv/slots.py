"""Slots: texts in progress. The one transition core under `TextEnv` (one slot) and `TextVectorEnv` (many)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import PolicyFunction, log_prob_of
from textenv.finished import Finished
from textenv.process import Array, TextProcess
from textenv.reading import reading_of

FINISH_REASONS = np.array(["length", "stop"], dtype=object)  # by whether the last token is an end token


@dataclass
class Ended:
    """What is known of the texts that ended in a step, [K] each; `rows` says which slots they are in."""

    rows: Array
    prompt: Array
    response: Array
    score: Array
    gold_score: Array | None
    kl: Array | None
    finish_reason: Array


@dataclass
class Step:
    """What a step paid, [B] each; rows that were not live are zero."""

    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    ref_log_prob: NDArray[np.float64]
    terms: dict[str, NDArray[np.float64]]
    ended: Ended | None

    def within(self, rows: NDArray[np.bool_]) -> Step:
        """What it paid in these rows, zero in the others."""
        terms = {name: np.where(rows, values, 0.0) for name, values in self.terms.items()}
        return replace(self, ref_log_prob=np.where(rows, self.ref_log_prob, 0.0), terms=terms)


class Slots:
    """B slots, each with a text, and what the reference says of its next token.

    A step is `write` (append tokens, pay rewards), then `start` for rows that begin anew, then `refresh` (one batched
    call of the reference, unless it is a table). No step loops over rows.
    """

    def __init__(self, process: TextProcess, num: int, policy: PolicyFunction | None = None) -> None:
        self.process = process
        self.bind(policy)
        self.texts = process.blank(num)
        self.reading = reading_of(process, self.texts)
        # where each answer begins in the texts seen as one line
        self.begins = np.arange(num) * self.texts.input_ids.shape[1] + process.prompt_width
        self.live = np.zeros(num, dtype=np.bool_)
        self.streams = np.zeros(num, dtype=np.uint64)
        self.episodes = np.zeros(num, dtype=np.uint64)
        self.kl = np.zeros(num)
        self._everything: Array | None = None

    @property
    def ref_log_probs(self) -> Array:
        """log pi_ref(. | s_t), [B, V]."""
        return self.reading.log_probs

    @property
    def begun(self) -> bool:
        """Whether every slot has had a text, and so a stream of prompts."""
        return bool(self.episodes.all())

    def seed(self, rows: Array, seeds: NDArray[np.uint64]) -> None:
        """Give each slot its own stream of prompts; slot i of many equals a single slot with the same seed."""
        self.streams[rows], self.episodes[rows] = _mix(seeds), 0

    @contextmanager
    def unchanged_if_refused(self) -> Iterator[None]:
        """A reset that is refused leaves the streams of prompts as they were."""
        streams, episodes = self.streams.copy(), self.episodes.copy()
        try:
            yield
        except Exception:
            self.streams, self.episodes = streams, episodes
            raise

    def bind(self, policy: PolicyFunction | None) -> None:
        """Let this policy's log-probabilities be paid; None: nobody's."""
        if policy is not None and not callable(getattr(policy, "next_token_logits", policy)):
            raise TypeError(f"A policy is called with (input_ids, attention_mask) and answers logits, got {policy!r}.")
        self.policy = policy

    def start(self, rows: Array, options: dict[str, Any] | None = None) -> None:
        """Begin a new text in these rows: a prompt from each slot's stream, or the state that `options` names."""
        if len(rows) == 0:
            return
        episodes = self.episodes.take(rows)
        drawn = draw(self.streams.take(rows), episodes, len(self.process.prompts.texts))
        if not options:
            self.process.start(self.texts, rows, drawn)
            self.reading.begin(rows, drawn)
        else:  # the state is whole before anything is changed: a reset that is refused leaves the texts as they were
            if unknown := set(options) - {"prompt", "response"}:
                raise ValueError(f"reset's options are 'prompt' and 'response', got {sorted(map(str, unknown))}.")
            prompt = options.get("prompt")
            state = self.process.state(int(drawn[0]) if prompt is None else prompt, options.get("response", ()))
            self.texts.put(rows, state)
            self.reading.begin(rows, None)
        self.episodes[rows] = episodes + np.uint64(1)
        self.live[rows] = True
        self.kl[rows] = 0.0

    def refresh(self) -> None:
        """Ask the reference for the next token of every text."""
        self.reading.refresh(self.live)

    def write(self, actions: Any) -> Step:
        """Append one token to every live text and pay for it."""
        process, texts, live = self.process, self.texts, self.live
        rows = live.nonzero()[0]
        if len(rows) == 0:
            raise gym.error.ResetNeeded(
                "No text is in progress (none begun, or it has ended): call reset() before step()."
            )
        tokens = process.check_actions(actions, live)
        looked, after = self.reading.look(tokens)
        chosen = np.where(live, looked, 0.0)
        if not process.full_support and chosen.min() == -np.inf:
            bad = int(np.flatnonzero(np.isneginf(chosen))[0])
            raise process.forbidden(texts, bad, int(tokens[bad]))
        log_prob, kl = None, self.kl
        if self.policy is not None:
            allowed = self.action_mask() == 1
            log_prob = log_prob_of(self.policy, texts.input_ids, texts.attention_mask, tokens, allowed)[:, None]
            kl = kl + np.where(live, log_prob[:, 0] - chosen, 0.0)

        transitions = process.transitions(texts, tokens[:, None], live[:, None])
        terminated = transitions.terminated[:, 0]
        ending = terminated.nonzero()[0]
        ended = self._end(ending, tokens, transitions.stop[:, 0], kl) if len(ending) else None
        scores = np.zeros(len(texts))
        if ended is not None:
            scores[ended.rows] = ended.score
        terms = process.reward_terms(transitions, chosen[:, None], scores, log_prob)

        # Nothing is changed before this line: a step that is refused leaves the texts as they were.
        cell = (self.begins + texts.time).take(rows)
        texts.input_ids.reshape(-1)[cell] = tokens.take(rows)
        texts.attention_mask.reshape(-1)[cell] = 1
        texts.time += live
        self.reading.advance(after)
        self.kl, self.live = kl, live ^ terminated
        return Step(
            rewards=reduce(np.add, terms.values())[:, 0],
            terminated=terminated,
            ref_log_prob=chosen,
            terms={name: values[:, 0] for name, values in terms.items()},
            ended=ended,
        )

    def _end(self, rows: Array, tokens: Array, stop: Array, kl: Array) -> Ended:
        """Score the texts that end with these tokens: their answers are put together here and nowhere else."""
        process, texts = self.process, self.texts
        time, prompt_text = texts.time.take(rows), texts.prompt_text.take(rows)
        answers = texts.input_ids.take(rows, axis=0)[:, process.prompt_width :][:, : time.max() + 1]
        answers[np.arange(len(rows)), time] = tokens.take(rows)
        finished = Finished(process, texts.prompt.take(rows), prompt_text, answers, time + 1)
        return Ended(
            rows=rows,
            prompt=prompt_text,
            response=np.array(finished.completions, dtype=object),
            score=process.score(finished),
            gold_score=process.gold_score(finished),
            kl=kl.take(rows) if self.policy is not None else None,
            finish_reason=FINISH_REASONS.take(stop.take(rows)),
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_everything": None}  # a copy of it would be B rows, and not read-only

    def observation(self) -> dict[str, Array]:
        """A copy of every text as `input_ids` and `attention_mask`, [B, L]."""
        return {"input_ids": self.texts.input_ids.copy(), "attention_mask": self.texts.attention_mask.copy()}

    def action_mask(self) -> NDArray[np.int8]:
        """int8 [B, V]: 1 where the next token is allowed; all 1 in a text that has ended (no action counts there).

        Where the reference forbids nothing this is one read-only array, the same at every step.
        """
        if self.process.full_support:
            if self._everything is None:
                everything = np.ones(self.process.vocab_size, dtype=np.int8)
                self._everything = np.broadcast_to(everything, (len(self.texts), len(everything)))
            return self._everything
        allowed: NDArray[np.int8] = (self.reading.allowed() | ~self.live[:, None]).astype(np.int8)
        return allowed


def draw(streams: NDArray[np.uint64], episodes: NDArray[np.uint64], num_prompts: int) -> NDArray[np.int64]:
    """The prompt of each slot's n-th text: a hash of (seed, n), so that no slot needs a generator object of its own.

    SplitMix64 (Steele, Lea, Flood 2014), applied to the seed (which is the stream) and then to the stream + n.
    """
    return (_mix(streams + episodes) % np.uint64(num_prompts)).astype(np.int64)


# SplitMix64's numbers; made once, as making them takes as long as using them
STEP, FIRST, SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + STEP
    z = (z ^ (z >> SHIFTS[0])) * FIRST
    z = (z ^ (z >> SHIFTS[1])) * SECOND
    return z ^ (z >> SHIFTS[2])
