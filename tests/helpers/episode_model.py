"""A model of the process in plain Python: one episode of one row, from the definition of states, tokens and r_t."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.helpers.tasks import LETTERS, RandomPolicy, token_hash
from textenv.references import TableReference

MASK = 2**64 - 1


def mix(number: int) -> int:
    """SplitMix64 of one number: the key of a seed, and then of key + n the n-th prompt."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


@dataclass
class Stream:
    """The prompts of one row: the n-th has the index mix(mix(seed) + n) mod P."""

    seed: int
    prompts: int
    drawn: int = 0

    def draw(self) -> int:
        """The index of the next prompt."""
        self.drawn += 1
        return mix((mix(self.seed & MASK) + self.drawn - 1) & MASK) % self.prompts


@dataclass
class Episode:
    """One episode: prompt, tokens, whether it has ended, and the sum of log pi - log pi_ref.

    Args:
        task: arguments of `TextMDP`.
        prompt: its text; token i of the vocabulary, from 1, is the i-th letter.
        tokens: the completion so far.
    """

    task: dict[str, Any]
    prompt: str
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    kl: float = 0.0

    @property
    def ids(self) -> list[int]:
        """The sequence: prompt and completion so far."""
        return [1 + LETTERS.index(word) for word in self.prompt.split()] + self.tokens

    def ref_log_probs(self) -> list[float]:
        """log pi_ref of each next token, of a table or a language model read alone; uniform without a reference."""
        reference, size = self.task["reference"], len(self.task["tokenizer"])
        if reference is None:
            return [-math.log(size)] * size
        if isinstance(reference, TableReference):
            state = 0
            for token in self.ids:
                state = int(reference.next_state[state, token])
            return list(reference.table[state])
        import torch

        with torch.no_grad():
            logits = reference(torch.tensor([self.ids])).logits[0, -1]
        return logits.log_softmax(dim=-1).tolist()

    def allowed(self) -> list[bool]:
        """Which tokens may be taken; all where the episode has ended and none counts."""
        return [self.ended or log_prob > -math.inf for log_prob in self.ref_log_probs()]

    def ends(self, token: int) -> bool:
        """Whether this token would be the last one."""
        return token == 0 or len(self.tokens) + 1 == self.task["max_new_tokens"]

    def take(self, token: int, policy: RandomPolicy | None) -> tuple[dict[str, float], dict[str, Any]]:
        """Appends a token; returns the terms of its reward, and what `info` has of a completion that it ends."""
        reference = self.ref_log_probs()[token]
        terms = {"score": 0.0, "kl_reference": self.task["kl_coef"] * reference}
        if policy is not None:
            logits = policy.table[token_hash(np.array(self.ids)) % 997]
            weights = [math.exp(x) if ok else 0.0 for x, ok in zip(logits, self.allowed(), strict=True)]
            own = math.log(weights[token] / sum(weights))
            terms["kl_policy"] = -self.task["kl_coef"] * own
            self.kl += own - reference
        self.ended = self.ends(token)
        terms |= {name: shaping(self, token) for name, shaping in SHAPING.items() if name in self.task["names"]}
        self.tokens.append(token)
        if not self.ended:
            return terms, {}
        terms["score"] = score(self.prompt, self.tokens)
        final = {
            "prompt": self.prompt,
            "completion": " ".join(LETTERS[token - 1] for token in self.tokens if token),
            "score": terms["score"],
            "finish_reason": "stop" if token == 0 else "length",
        }
        if self.task.get("gold_reward"):
            final["gold_score"] = 5.0 + token_hash(np.array([len(self.prompt), *self.tokens])) / 10_000
        return terms, final | ({"kl": self.kl} if policy is not None and not math.isnan(self.kl) else {})

    def bind(self) -> None:
        """Another policy acts from here on: the KL of the completion is not known."""
        self.kl = math.nan


def score(prompt: str, tokens: list[int]) -> float:
    """The score of a completion: `letter_values` of it."""
    return len(prompt) / 8 + sum((i + 1) * token for i, token in enumerate(tokens)) / 16


def potential(ids: list[int]) -> float:
    """`hashed_potential` of one sequence."""
    return token_hash(np.array(ids)) / 10_000 - 0.5


# The terms of `tests.helpers.tasks.SHAPING` of the token that is about to be appended; `ended` is that after it.
SHAPING = {
    "potential_shaping": lambda e, token: (0.0 if e.ended else potential([*e.ids, token])) - potential(e.ids),
    "length": lambda e, token: -0.25,
    "repetition": lambda e, token: -0.5 if token in e.tokens else 0.0,
    "missing_eos": lambda e, token: -1.5 if e.ended and token != 0 else 0.0,
}
