"""textenv/Toy-v0: a family of random tasks, small enough that every completion can be enumerated.

Description
    Words are letters. The reference is a random finite-state machine: the next word's distribution depends on the
    prompt, on the time and on the last word. The reward is random too: each (prompt, time, last word, word) has a
    hidden N(0, 1) weight, and the score of a completion, given at its end, is the sum of its weights divided by
    sqrt(max_new_tokens). The agent must find out which token contributed what; `textenv.exact` computes it.

Observation
    `Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`, L = prompt length + `max_new_tokens`.

Action
    `Discrete(vocab_size)`; 0 is the end token. Nothing is masked.

Rewards
    `1[last] score(x, y) + beta log pi_ref(a|s)`, and `- beta log pi(a|s)` with a bound policy.

Start
    One of `num_prompts` prompts, uniformly.

End
    At token 0 or after `max_new_tokens`.

Arguments
    vocab_size=6, max_new_tokens=4, num_prompts=2, task_seed=0 (the seed of reference and reward), kl_coef=0.1, shaping.
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

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import check_count, is_number, shown
from textenv.categorical import masked_log_softmax
from textenv.data import WordTokenizer
from textenv.mdp import TextMDP
from textenv.references import TableReference
from textenv.shaping import ShapingTerm

MAX_WEIGHTS = 30_000_000  # about 1.5 GiB during construction


def toy(
    vocab_size: int = 6,
    max_new_tokens: int = 4,
    num_prompts: int = 2,
    task_seed: int = 0,
    kl_coef: float = 0.1,
    shaping: Sequence[ShapingTerm] = (),
) -> TextMDP:
    """Makes the toy of these numbers: the same numbers give the same toy."""
    numbers = {"vocab_size": vocab_size, "max_new_tokens": max_new_tokens, "num_prompts": num_prompts}
    if not all(map(is_number, numbers.values())) or vocab_size < 3 or max_new_tokens < 1 or num_prompts < 1:
        raise ValueError(
            "Toy-v0 needs vocab_size >= 3 (the end token and two letters), max_new_tokens >= 1 and num_prompts >= 1, "
            f"got {', '.join(map(shown, numbers.values()))}."
        )
    vocab_size, max_new_tokens, num_prompts = (
        check_count(name, number, high=2**31) for name, number in numbers.items()
    )
    task_seed = check_count("task_seed", task_seed, 0, 2**63 - 1)
    if (size := num_prompts * max_new_tokens * vocab_size**2) > MAX_WEIGHTS:
        raise ValueError(
            f"Toy-v0 draws num_prompts x max_new_tokens x vocab_size^2 weights: {size:,} here, the limit is "
            f"{MAX_WEIGHTS:,}; lower one of them."
        )
    rng = np.random.default_rng(task_seed)
    letters = vocab_size - 1
    tokenizer = WordTokenizer([_letter(i) for i in range(letters)])
    width = max(1, math.ceil(math.log(num_prompts) / math.log(letters) - 1e-9))
    # prompt i is the number i, with the letters as digits
    prompts = [" ".join(_letter(i // letters**d % letters) for d in reversed(range(width))) for i in range(num_prompts)]

    weights = rng.normal(size=(num_prompts, max_new_tokens, vocab_size, vocab_size)) / math.sqrt(max_new_tokens)
    logits = rng.normal(size=(num_prompts, max_new_tokens, vocab_size, vocab_size))
    return TextMDP(
        tokenizer,
        prompts,
        HiddenWeights(prompts, weights),
        _state_machine(masked_log_softmax(logits, np.True_), width),
        max_new_tokens=max_new_tokens,
        kl_coef=kl_coef,
        shaping=shaping,
    )


class HiddenWeights:
    """The random reward: `weights[prompt, t, last word, word]`, summed over time; at t = 0 the last word is 0."""

    __name__ = "hidden_weights"

    def __init__(self, prompts: list[str], weights: NDArray[np.float64]) -> None:
        self.index = {prompt: i for i, prompt in enumerate(prompts)}
        self.weights = weights
        self.weights[:, 1:, 0, 0] = 0.0  # 0 after 0: after the end, where 0 fills the arrays
        num_prompts, steps, self.vocab_size, _ = weights.shape
        # offsets of the weights of each time and prompt, [T, P], in the flattened weights
        self.offsets = (np.arange(num_prompts * steps).reshape(num_prompts, steps) * self.vocab_size**2).T.copy()

    def __call__(
        self, prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: object
    ) -> list[float]:
        """Scores a batch of completions."""
        length = np.array([len(ids) for ids in completion_ids])
        tokens = np.array([ids + [0] * (length.max() - len(ids)) for ids in completion_ids])
        indices = np.array([self.index[prompt] for prompt in prompts])
        scores: list[float] = self.score_tokens(indices, tokens, length).tolist()
        return scores

    def score_tokens(
        self, prompt: NDArray[np.int64], tokens: NDArray[np.int64], length: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Computes the same scores from arrays."""
        words = tokens.T
        position = self.offsets[: len(words)].take(prompt, axis=1)
        position += words
        after_first = position[1:]
        after_first += self.vocab_size * words[:-1]
        terms = self.weights.take(position)
        # token by token: the rounding does not depend on the rest of the batch
        scores: NDArray[np.float64] = np.add.accumulate(terms)[-1]
        return scores


def _state_machine(log_probs: NDArray[np.float64], width: int) -> TableReference:
    """The reference as a finite-state machine: first a state per prefix of the prompt, then (prompt, t, last word)."""
    num_prompts, max_new_tokens, vocab, _ = log_probs.shape
    letters = vocab - 1
    digits = sum(letters**d for d in range(width))  # states inside a prompt: level d has letters**d prefixes
    completing = num_prompts * max_new_tokens * vocab
    other = digits + completing  # prompts that are not in the list, and everything after the end
    next_state = np.full((other + 1, vocab), other)
    table = np.full((other + 1, vocab), -np.log(vocab))
    start = np.arange(num_prompts) * max_new_tokens * vocab + digits  # (prompt, t = 0, last word 0)
    offset = 0
    for level in range(width):
        size = letters**level
        for prefix in range(size):
            children = prefix * letters + np.arange(letters)
            if level < width - 1:
                next_state[offset + prefix, 1:] = offset + size + children
            else:
                next_state[offset + prefix, 1:] = np.where(children < num_prompts, start[children % num_prompts], other)
        offset += size
    table[digits:other] = log_probs.reshape(completing, vocab)
    for prompt in range(num_prompts):
        for t in range(max_new_tokens - 1):
            here = start[prompt] + t * vocab
            next_state[here : here + vocab, 1:] = start[prompt] + (t + 1) * vocab + np.arange(1, vocab)
    return TableReference(table, next_state)


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else f"w{i}"
