"""Small tasks for the tests: rewards, policies and references at module level, so that environments pickle."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from hypothesis import strategies as st

from textenv import TextMDP
from textenv.data import WordTokenizer
from textenv.references import TableReference
from textenv.shaping import length_penalty, missing_eos_penalty, potential_based, repetition_penalty

LETTERS = "abcdefgh"
# Prompts of different lengths over the first two letters, which every vocabulary here has.
PROMPTS = ["a", "b a b", "a b", "b b"]


def letter_values(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """A score that depends on the prompt and on every token with its position."""
    return [
        len(prompt) / 8 + sum((i + 1) * token for i, token in enumerate(ids)) / 16
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def count_words(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """One point per word."""
    return [float(len(completion.split())) for completion in completions]


def half(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """Half a point for every completion."""
    return [0.5] * len(completions)


def golden(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """A gold reward: an arbitrary number in [5, 6) for each prompt and completion, unlike any of `letter_values`."""
    return [
        5.0 + token_hash(np.array([len(prompt), *ids])) / 10_000
        for prompt, ids in zip(prompts, completion_ids, strict=True)
    ]


def zero(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
    """Scores every completion zero."""
    return [0.0] * len(prompts)


def forgetful(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> None:
    """A reward function without a return."""


def sequence_hash(input_ids: Any, attention_mask: Any) -> np.ndarray:
    """A number in 0 .. 9999 for each sequence [B], whatever its padding."""
    ids, mask = np.asarray(input_ids), np.asarray(attention_mask)
    return np.array([token_hash(row[real == 1]) for row, real in zip(ids, mask, strict=True)])


def token_hash(tokens: np.ndarray) -> int:
    """A number in 0 .. 9999 from the tokens of one sequence."""
    return int.from_bytes(hashlib.blake2b(tokens.astype(np.int64).tobytes(), digest_size=4).digest(), "big") % 10_000


def hashed_potential(input_ids: Any, attention_mask: Any) -> np.ndarray:
    """Phi(s): an arbitrary function of the sequence alone."""
    return sequence_hash(input_ids, attention_mask) / 10_000 - 0.5


class RandomPolicy:
    """Arbitrary logits for every sequence: a policy that depends on the whole sequence and on nothing else."""

    def __init__(self, vocab_size: int, seed: int = 0, scale: float = 1.0) -> None:
        self.table = scale * np.random.default_rng(seed).normal(size=(997, vocab_size))

    def __call__(self, input_ids: Any, attention_mask: Any) -> np.ndarray:
        """Logits [B, V]."""
        return self.table[sequence_hash(input_ids, attention_mask) % 997]


def log_softmax(logits: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """log softmax of one row of logits over the allowed tokens, from its definition."""
    weights = np.where(allowed, np.exp(logits), 0.0)
    with np.errstate(divide="ignore"):
        return np.log(weights / weights.sum())


def random_reference(vocab_size: int, seed: int, sparse: bool) -> TableReference:
    """A random table of five states; a sparse one masks about half of the tokens, never all of them."""
    rng = np.random.default_rng(seed)
    weights = rng.exponential(size=(5, vocab_size)) + 0.05
    if sparse:
        weights *= rng.random((5, vocab_size)) < 0.5
        weights[np.arange(5), rng.integers(vocab_size, size=5)] += 1.0
    with np.errstate(divide="ignore"):
        return TableReference(
            np.log(weights / weights.sum(axis=1, keepdims=True)), rng.integers(5, size=(5, vocab_size))
        )


def words(vocab_size: int = 4, **arguments: Any) -> dict[str, Any]:
    """Arguments of Text-v0 (and of TextMDP) for a small vocabulary of letters."""
    tokenizer = WordTokenizer(list(LETTERS[: vocab_size - 1]))
    return {
        "tokenizer": tokenizer,
        "prompts": PROMPTS,
        "reward": letter_values,
        "max_new_tokens": 3,
        "kl_coef": 0.5,
    } | arguments


def stories(assets: Path, **arguments: Any) -> dict[str, Any]:
    """Arguments of Text-v0 for a real language model of 260 thousand parameters."""
    from transformers import AutoTokenizer

    path = assets / "stories260k"
    return {
        "tokenizer": AutoTokenizer.from_pretrained(path),
        "prompts": ["Once upon a time", "The big dog", "Lily and her mum went to the park"],
        "reward": count_words,
        "reference": str(path),
        "max_new_tokens": 4,
        "kl_coef": 0.1,
    } | arguments


SHAPING = [potential_based(hashed_potential), length_penalty(0.25), repetition_penalty(0.5), missing_eos_penalty(1.5)]


@st.composite
def tasks(draw: Any, max_vocab: int = 5, max_tokens: int = 4) -> dict[str, Any]:
    """Arguments of small random tasks: vocabulary, prompts, reference (dense or sparse), shaping, beta."""
    vocab_size = draw(st.integers(3, max_vocab))
    return words(
        vocab_size,
        prompts=draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3, unique=True)),
        reference=random_reference(vocab_size, draw(st.integers(0, 99)), draw(st.booleans())),
        max_new_tokens=draw(st.integers(1, max_tokens)),
        kl_coef=draw(st.sampled_from([0.0, 0.25, 1.0])),
        shaping=draw(st.lists(st.sampled_from(SHAPING), max_size=2, unique=True)),
    )


def mdp(**arguments: Any) -> TextMDP:
    """The MDP of `words(...)`."""
    return TextMDP(**words(**arguments))


def make(arguments: dict[str, Any], **more: Any) -> Any:
    """A single Text-v0."""
    return gym.make("textenv/Text-v0", **arguments, **more)


def toy() -> Any:
    """A task whose policies are trained to the reference in a second."""
    return gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)


def sparse(**arguments: Any) -> Any:
    """A task with masks."""
    return make(words(4, reference=random_reference(4, 3, sparse=True), **arguments))


def allowed_action(mask: np.ndarray, rng: np.random.Generator) -> int:
    """One of the allowed tokens, uniformly."""
    return int(rng.choice(np.flatnonzero(mask)))


def rollout(env: Any, rng: np.random.Generator, steps: int, seed: int | None = None) -> list[Any]:
    """Everything that a single env returns along `steps` random legal steps, with a reset after each end."""
    observation, info = env.reset(seed=seed)
    results: list[Any] = [(observation, info)]
    for _ in range(steps):
        observation, reward, terminated, truncated, info = env.step(allowed_action(info["action_mask"], rng))
        results.append((observation, reward, terminated, truncated, info))
        if terminated:
            observation, info = env.reset()
            results.append((observation, info))
    return results


def assert_same(left: Any, right: Any, atol: float = 0.0, where: str = "") -> None:
    """Asserts that nested dicts, tuples, lists, arrays and scalars are equal, floats within `atol`."""
    if isinstance(left, dict):
        assert isinstance(right, dict) and left.keys() == right.keys(), f"{where}: {set(left)} and {set(right)}"
        for key in left:
            assert_same(left[key], right[key], atol, f"{where}.{key}")
    elif isinstance(left, list | tuple) or (isinstance(left, np.ndarray) and left.dtype == object):
        assert len(left) == len(right), where
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, atol, f"{where}[{i}]")
    elif isinstance(left, str) or left is None:
        assert left == right, where
    else:
        a, b = np.asarray(left), np.asarray(right)
        assert a.shape == b.shape and a.dtype == b.dtype, f"{where}: {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=where)


def logging_reward(
    prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any, log_metric: Any, log_extra: Any
) -> list[float]:
    """A reward of 1 that logs the update, the mean number of tokens, and each completion in capitals."""
    log_metric("step", trainer_state.global_step)
    log_metric("mean_tokens", sum(map(len, completion_ids)) / len(prompts))
    log_extra("capitals", [completion.upper() for completion in completions])
    return [1.0] * len(prompts)
