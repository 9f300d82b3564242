"""Slots: texts in progress. The one transition core under `TextEnv` (one slot) and `TextVectorEnv` (many)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from textenv.bound_policy import PolicyFunction, log_prob_of
from textenv.process import Array, TextProcess


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


class Slots:
    """B slots, each with a text, and what the reference says of its next token.

    A step is `write` (append tokens, pay rewards), then `start` for rows that begin anew, then `refresh` (one batched
    call of the reference). No step loops over rows.
    """

    def __init__(self, process: TextProcess, num: int, policy: PolicyFunction | None = None) -> None:
        self.process = process
        self.bind(policy)
        self.texts = process.blank(num)
        self.rows = np.arange(num)
        self.live = np.zeros(num, dtype=np.bool_)
        self.seeds = np.zeros(num, dtype=np.uint64)
        self.episodes = np.zeros(num, dtype=np.uint64)
        self.kl = np.zeros(num)
        self.ref_log_probs: Array = np.broadcast_to(0.0, (num, process.vocab_size))  # until `refresh`, like `allowed`
        self.allowed: Array = np.broadcast_to(np.True_, (num, process.vocab_size))
        self._everything = np.ones(process.vocab_size, dtype=np.int8)

    @property
    def begun(self) -> bool:
        """Whether every slot has had a text, and so a stream of prompts."""
        return bool(self.episodes.all())

    def seed(self, rows: Array, seeds: NDArray[np.uint64]) -> None:
        """Give each slot its own stream of prompts; slot i of many equals a single slot with the same seed."""
        self.seeds[rows], self.episodes[rows] = seeds, 0

    @contextmanager
    def unchanged_if_refused(self) -> Iterator[None]:
        """A reset that is refused leaves the streams of prompts as they were."""
        seeds, episodes = self.seeds.copy(), self.episodes.copy()
        try:
            yield
        except Exception:
            self.seeds, self.episodes = seeds, episodes
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
        unknown = set(options or ()) - {"prompt", "response"}
        if unknown:
            raise ValueError(f"reset's options are 'prompt' and 'response', got {sorted(map(str, unknown))}.")
        drawn = draw(self.seeds[rows], self.episodes[rows], len(self.process.prompts.texts))
        if not options:
            self.process.start(self.texts, rows, drawn)
        else:  # the state is whole before anything is changed: a reset that is refused leaves the texts as they were
            prompt = options.get("prompt")
            state = self.process.state(int(drawn[0]) if prompt is None else prompt, options.get("response", ()))
            self.texts.put(rows, state)
        self.episodes[rows] += np.uint64(1)
        self.live[rows] = True
        self.kl[rows] = 0.0

    def refresh(self) -> None:
        """Ask the reference for the next token of every text."""
        if not self.live.any():
            return
        self.ref_log_probs = self.process.next_log_probs(self.texts)
        if not self.process.full_support:
            self.allowed = self.ref_log_probs > -np.inf

    def write(self, actions: Any) -> Step:
        """Append one token to every live text and pay for it."""
        process, texts, live = self.process, self.texts, self.live
        if not live.any():
            raise gym.error.ResetNeeded(
                "No text is in progress (none begun, or it has ended): call reset() before step()."
            )
        tokens = process.check_actions(actions, live)
        chosen = np.where(live, self.ref_log_probs[self.rows, tokens].astype(np.float64), 0.0)
        if np.isneginf(chosen).any():
            bad = int(np.flatnonzero(np.isneginf(chosen))[0])
            raise process.forbidden(texts, bad, int(tokens[bad]))
        log_prob = None
        if self.policy is not None:
            allowed = self.action_mask() == 1
            log_prob = log_prob_of(self.policy, texts.input_ids, texts.attention_mask, tokens, allowed)[:, None]

        transitions = process.transitions(texts, tokens[:, None], live[:, None])
        terminated = transitions.terminated[:, 0]
        kl = self.kl if log_prob is None else self.kl + np.where(live, log_prob[:, 0] - chosen, 0.0)
        ended = self._end(tokens, terminated, transitions.stop[:, 0], kl) if terminated.any() else None
        scores = np.zeros(len(texts))
        if ended is not None:
            scores[ended.rows] = ended.score
        terms = process.reward_terms(transitions, chosen[:, None], scores, log_prob)

        # Nothing is changed before this line: a step that is refused leaves the texts as they were.
        rows = self.rows[live]
        columns = process.prompt_width + texts.time[rows]
        texts.input_ids[rows, columns] = tokens[rows]
        texts.attention_mask[rows, columns] = 1
        texts.time[rows] += 1
        self.kl, self.live = kl, live & ~terminated
        return Step(
            rewards=np.sum([values[:, 0] for values in terms.values()], axis=0),
            terminated=terminated,
            ref_log_prob=chosen,
            terms={name: values[:, 0] for name, values in terms.items()},
            ended=ended,
        )

    def _end(self, tokens: Array, terminated: Array, stop: Array, kl: Array) -> Ended:
        process, texts = self.process, self.texts
        rows = np.flatnonzero(terminated)
        width = process.prompt_width
        answers = [  # once a text, not once a step
            [*texts.input_ids[row, width : width + texts.time[row]].tolist(), int(tokens[row])] for row in rows
        ]
        completions = [process.decode(answer) for answer in answers]
        finished = (texts.prompt[rows], texts.prompt_text[rows], answers, completions)
        return Ended(
            rows=rows,
            prompt=texts.prompt_text[rows],
            response=np.array(completions, dtype=object),
            score=process.score(*finished),
            gold_score=process.gold_score(*finished),
            kl=kl[rows] if self.policy is not None else None,
            finish_reason=np.where(stop[rows], "stop", "length").astype(object),
        )

    def observation(self) -> dict[str, Array]:
        """A copy of every text as `input_ids` and `attention_mask`, [B, L]."""
        return {"input_ids": self.texts.input_ids.copy(), "attention_mask": self.texts.attention_mask.copy()}

    def action_mask(self) -> NDArray[np.int8]:
        """int8 [B, V]: 1 where the next token is allowed; all 1 in a text that has ended (no action counts there).

        Where the reference forbids nothing this is one read-only row seen B times, not a copy.
        """
        if self.process.full_support:
            return np.broadcast_to(self._everything, (len(self.texts), len(self._everything)))
        return (self.allowed | ~self.live[:, None]).astype(np.int8)


def draw(seeds: NDArray[np.uint64], episodes: NDArray[np.uint64], num_prompts: int) -> NDArray[np.int64]:
    """The prompt of each slot's n-th text: a hash of (seed, n), so that no slot needs a generator object of its own.

    SplitMix64 (Steele, Lea, Flood 2014), applied to the seed and then to seed + n.
    """
    with np.errstate(over="ignore"):
        hashed = _mix(_mix(seeds) + episodes)
    return (hashed % np.uint64(num_prompts)).astype(np.int64)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
