"""The toys on which the losses of other libraries are measured: three tokens, two prompts, 30 completions or fewer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from textenv import EnvLike, TextEnv, TextMDP, get_mdp
from textenv.data import WordTokenizer
from textenv.references import TableReference

BETA = 0.2  # the coefficient of the KL
STEPS = 2  # of `equal_lengths`


def toy(kl_coef: float = BETA) -> EnvLike:
    """Toy-v0 with completions of one to three tokens: J = E[score] - beta KL.

    Scores are rounded to float32, in which TRL keeps them. Otherwise the rounding is what it normalizes at pi*, where
    all returns of a prompt are equal.
    """
    mdp = get_mdp(gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3, num_prompts=2))
    (score,) = mdp.reward.functions

    def rounded(**arguments: Any) -> list[float]:
        return [float(np.float32(each)) for each in score(**arguments)]

    return made_again(mdp, rounded, kl_coef)


def without_kl() -> EnvLike:
    """The same with beta = 0: J = E[score]."""
    return toy(0.0)


def without_score(env: EnvLike | None = None) -> EnvLike:
    """The same, or another toy, with all scores zero: J = -beta KL."""
    return made_again(get_mdp(toy() if env is None else env), zero, BETA)


def equal_lengths() -> EnvLike:
    """All completions have two tokens, of three letters: the reference never ends one. Scores are random.

    A buffer of whole episodes then has a constant number of steps, as the rollouts of Stable-Baselines3 and TorchRL do.
    """
    rng, letters = np.random.default_rng(0), 3
    weights = rng.normal(size=(letters,) * STEPS)

    def scores(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(weights[tuple(token - 1 for token in ids)]) for ids in completion_ids]

    # states: the prompt is unread; the prompt; after one letter
    log_probs = np.full((2 + letters, 1 + letters), -np.inf)
    logits = rng.normal(size=(2 + letters, letters))
    log_probs[:, 1:] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    next_state = np.full(log_probs.shape, 2)
    next_state[0], next_state[1, 1:] = 1, 2 + np.arange(letters)
    reference = TableReference(log_probs, next_state)
    return TextEnv(TextMDP(WordTokenizer("a b c"), ["a"], scores, reference, max_new_tokens=STEPS, kl_coef=BETA))


def made_again(mdp: TextMDP, reward: Any, kl_coef: float) -> EnvLike:
    """The same prompts, reference and length with another reward."""
    settings: dict[str, Any] = {"max_new_tokens": mdp.max_new_tokens, "kl_coef": kl_coef}
    return TextEnv(TextMDP(mdp.tokenizer, list(mdp.prompts.texts), reward, mdp.reference, **settings))


def zero(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Scores every completion zero."""
    return [0.0] * len(prompts)


OBJECTIVES: dict[str, Callable[[], EnvLike]] = {
    "score - KL": toy,
    "score": without_kl,
    "-KL": without_score,
    "score - KL, equal lengths": equal_lengths,
}
