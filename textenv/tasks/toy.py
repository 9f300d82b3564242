"""textenv/Toy-v0: a family of random tasks, small enough that every text can be enumerated.

Description
    Words are letters. The reference is a random machine: the next word's distribution depends on the prompt, on the
    time and on the last word. The reward is random too: each (prompt, time, last word, word) carries a hidden N(0, 1)
    weight, and a text scores the sum of its weights over sqrt(max_new_tokens), paid at its end. Which token earned it
    is for the learner to find out, and known to `textenv.exact`.

Observation
    `Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`, L = prompt length + `max_new_tokens`.

Action
    `Discrete(vocab_size)`; 0 ends the text. Nothing is masked.

Rewards
    `1[last] score(x, y) + beta log pi_ref(a|s)`, and `- beta log pi(a|s)` with a bound policy.

Start
    One of `num_prompts` prompts, uniformly.

End
    At token 0 or after `max_new_tokens`.

Arguments
    vocab_size=6, max_new_tokens=4, num_prompts=2, task_seed=0 (draws reference and reward), kl_coef=0.1, shaping.
    The tables have num_prompts x max_new_tokens x vocab_size^2 entries, at most 30 million.

Version history
    v0: first version.

>>> import gymnasium as gym, textenv
>>> env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3, num_prompts=2, task_seed=1)
>>> env.unwrapped.prompts
['a', 'b']
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from textenv.bound_policy import masked_log_softmax
from textenv.data import WordTokenizer
from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.shaping import ShapingTerm

MAX_WEIGHTS = 30_000_000  # about 1.5 GiB while the task is made


def toy(
    vocab_size: int = 6,
    max_new_tokens: int = 4,
    num_prompts: int = 2,
    task_seed: int = 0,
    kl_coef: float = 0.1,
    shaping: Sequence[ShapingTerm] = (),
) -> TextMDP:
    """The toy that these numbers name: the same numbers, the same toy."""
    if vocab_size < 3 or max_new_tokens < 1 or num_prompts < 1:
        raise ValueError(
            "Toy-v0 needs vocab_size >= 3 (the end token and two letters), max_new_tokens >= 1 and num_prompts >= 1, "
            f"got {vocab_size}, {max_new_tokens}, {num_prompts}."
        )
    if (size := num_prompts * max_new_tokens * vocab_size**2) > MAX_WEIGHTS:
        raise ValueError(
            f"Toy-v0 draws num_prompts x max_new_tokens x vocab_size^2 weights: {size:,} here, the limit is "
            f"{MAX_WEIGHTS:,}; lower one of them."
        )
    rng = np.random.default_rng(task_seed)
    letters = vocab_size - 1
    tokenizer = WordTokenizer([_letter(i) for i in range(letters)])
    width = max(1, math.ceil(math.log(num_prompts) / math.log(letters) - 1e-9))
    # prompt i is the number i written with the letters as digits
    prompts = [" ".join(_letter(i // letters**d % letters) for d in reversed(range(width))) for i in range(num_prompts)]

    weights = rng.normal(size=(num_prompts, max_new_tokens, vocab_size, vocab_size)) / math.sqrt(max_new_tokens)
    logits = rng.normal(size=(num_prompts, max_new_tokens, vocab_size, vocab_size))
    return TextMDP(
        tokenizer,
        prompts,
        HiddenWeights(prompts, weights),
        _machine(masked_log_softmax(logits, np.True_), width),
        max_new_tokens=max_new_tokens,
        kl_coef=kl_coef,
        shaping=shaping,
    )


class HiddenWeights:
    """The random reward: `weights[prompt, t, last word, word]`, summed along the text; at t = 0 the last word is 0."""

    __name__ = "hidden_weights"

    def __init__(self, prompts: list[str], weights: Any) -> None:
        self.index = {prompt: i for i, prompt in enumerate(prompts)}
        self.weights = weights
        self.weights[:, 1:, 0, 0] = 0.0  # after the end token, where arrays are filled up with it
        num_prompts, steps, self.vocab_size, _ = weights.shape
        # where the weights of each time and prompt begin, [T, P], in the weights seen as one line
        self.begins = (np.arange(num_prompts * steps).reshape(num_prompts, steps) * self.vocab_size**2).T.copy()

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        """Scores of a batch of texts."""
        length = np.array([len(ids) for ids in completion_ids])
        tokens = np.array([ids + [0] * (length.max() - len(ids)) for ids in completion_ids])
        scores: list[float] = self.score_tokens(
            np.array([self.index[text] for text in prompts]), tokens, length
        ).tolist()
        return scores

    def score_tokens(self, prompt: Any, tokens: Any, length: Any) -> Any:
        """The same, from arrays."""
        words = tokens.T
        place = self.begins[: len(words)].take(prompt, axis=1)
        place += words
        after_first = place[1:]
        after_first += self.vocab_size * words[:-1]
        paid = self.weights.take(place)
        return np.add.accumulate(paid)[-1]  # token by token, so that no sum's last digit depends on the texts beside it


def _machine(log_probs: Any, width: int) -> TableReference:
    """The reference as a finite-state machine: it reads the prompt's digits, then is in (prompt, t, last word)."""
    num_prompts, max_new_tokens, vocab, _ = log_probs.shape
    letters = vocab - 1
    digits = sum(letters**d for d in range(width))  # states inside the prompt: level d holds letters**d prefixes
    answering = num_prompts * max_new_tokens * vocab
    lost = digits + answering  # prompts that are not in the list, and what follows the end
    next_state = np.full((lost + 1, vocab), lost)
    table = np.full((lost + 1, vocab), -np.log(vocab))
    start = np.arange(num_prompts) * max_new_tokens * vocab + digits  # (prompt, t = 0, last word 0)
    offset = 0
    for level in range(width):
        size = letters**level
        for prefix in range(size):
            children = prefix * letters + np.arange(letters)
            if level < width - 1:
                next_state[offset + prefix, 1:] = offset + size + children
            else:
                next_state[offset + prefix, 1:] = np.where(children < num_prompts, start[children % num_prompts], lost)
        offset += size
    table[digits:lost] = log_probs.reshape(answering, vocab)
    for prompt in range(num_prompts):
        for t in range(max_new_tokens - 1):
            here = start[prompt] + t * vocab
            next_state[here : here + vocab, 1:] = start[prompt] + (t + 1) * vocab + np.arange(1, vocab)
    return TableReference(table, next_state)


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else f"w{i}"
