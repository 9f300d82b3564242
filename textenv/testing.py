"""Unit tests of a reward in three lines: play an answer, look at what each token was paid.

>>> import gymnasium as gym, textenv
>>> from textenv.testing import play
>>> episode = play(gym.make("textenv/TajMahal-v0"), "where is the taj mahal", "it is in agra")
>>> episode.score, episode.finish_reason, len(episode.rewards)
(1.0, 'stop', 5)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from textenv.env import TextEnv
from textenv.state import Array
from textenv.unwrap import get_mdp


@dataclass(frozen=True)
class Episode:
    """An answer that was played token by token.

    Attributes:
        prompt: the prompt as text.
        text: the answer as text.
        token_ids: the tokens that were played, [T].
        rewards: float64 [T], what each was paid.
        terms: the terms of each reward, name -> [T]; their sum is `rewards`.
        ref_log_probs: log pi_ref of each token, [T].
        score: what the reward functions gave, None if the answer has not ended.
        gold_score: what the gold reward gave, None without one.
        finish_reason: "stop", "length", or None if the answer has not ended.
    """

    prompt: str
    text: str
    token_ids: list[int]
    rewards: Array
    terms: dict[str, Array]
    ref_log_probs: Array
    score: float | None
    gold_score: float | None
    finish_reason: str | None


def play(env: gym.Env[Any, Any], prompt: Any, completion: Any) -> Episode:
    """Play `completion` after `prompt`, step by step through the environment.

    Args:
        env: a single text environment (of `gym.make`).
        prompt: index, text or ids.
        response: text or ids. Text is closed with the end token unless it fills `max_new_tokens`; ids are played as
            they are.

    Raises:
        ValueError: the response is empty or goes on after the end, or a token is masked (`InvalidAction`).
    """
    mdp = get_mdp(env)
    if not isinstance(env.unwrapped, TextEnv):
        raise TypeError(f"play needs a single environment (gym.make), got {type(env).__name__}.")
    tokens = mdp.encode_completion(completion).tolist()
    if isinstance(completion, str) and len(tokens) < mdp.max_new_tokens and mdp.eos_token_ids:
        tokens.append(mdp.eos_token_ids[0])
    if not tokens:
        raise ValueError("There is nothing to play: the response has no token.")
    if len(tokens) > mdp.max_new_tokens:
        raise ValueError(f"The response has {len(tokens)} tokens, more than max_new_tokens = {mdp.max_new_tokens}.")
    env.reset(options={"prompt": prompt})
    rewards, infos = [], []
    for t, token in enumerate(tokens):
        _, reward, terminated, _, info = env.step(token)
        rewards.append(float(reward))
        infos.append(info)
        if terminated and t < len(tokens) - 1:
            raise ValueError(f"The response goes on after its end: token {t} of {tokens} ends the text.")
    texts = env.unwrapped.episodes.texts
    return Episode(
        prompt=str(texts.prompt_text[0]),
        text=mdp.decode(tokens),
        token_ids=tokens,
        rewards=np.array(rewards),
        terms={name: np.array([info["reward_terms"][name] for info in infos]) for name in infos[-1]["reward_terms"]},
        ref_log_probs=np.array([info["ref_log_prob"] for info in infos]),
        score=infos[-1].get("score"),
        gold_score=infos[-1].get("gold_score"),
        finish_reason=infos[-1].get("finish_reason"),
    )
