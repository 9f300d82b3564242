"""A completion that was played token by token, with the reward of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from textenv.env import TextEnv
from textenv.html import Html, block_html, largest, legend, table_html, text_html, tokens_html
from textenv.state import Array
from textenv.unwrap import get_mdp


@dataclass(frozen=True)
class Episode:
    """A completion that was played token by token. A notebook shows it as coloured tokens and a table of the terms.

    Attributes:
        prompt: the prompt as text.
        completion: the completion as text.
        token_ids: its tokens, [T].
        rewards: float64 [T], r_t.
        terms: the terms of the rewards, name -> [T]; their sum is `rewards`.
        ref_log_probs: log pi_ref of each token, [T].
        score: the reward functions' score, None if the completion is not finished.
        gold_score: the gold reward's score, None without a gold reward or if the completion is not finished.
        finish_reason: "stop", "length", or None if the completion is not finished.
        tokens: the spelling of each token, [T]; a notebook shows the ids without it.
    """

    prompt: str
    completion: str
    token_ids: list[int]
    rewards: Array
    terms: dict[str, Array]
    ref_log_probs: Array
    score: float | None
    gold_score: float | None
    finish_reason: str | None
    tokens: list[str] = field(default_factory=list)

    def _repr_html_(self) -> Html:
        """Prompt, tokens in the colours of their rewards, and a table of the terms of each token's reward."""
        names = self.tokens or [f"<id {token}>" for token in self.token_ids]
        rewards = self.rewards.tolist()
        columns = {name: values.tolist() for name, values in self.terms.items()}
        columns |= {"reward": rewards, "log pi_ref": self.ref_log_probs.tolist()}
        rows = [[name, *numbers] for name, *numbers in zip(names, *columns.values(), strict=True)]
        numbers = {"score": self.score, "gold score": self.gold_score, "return": float(self.rewards.sum())}
        return block_html(
            Html(f"<b>prompt</b> {text_html(self.prompt)}"),
            tokens_html(names, rewards, columns),
            legend("reward", largest(rewards)),
            table_html(["token", *columns], rows, limit=16),
            ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if value is not None),
            f"finish reason: {self.finish_reason or 'not finished'}",
        )


def play(env: gym.Env[Any, Any], prompt: object, completion: object) -> Episode:
    """Steps the environment through `completion` after `prompt`.

    Args:
        env: a single text environment (of `gym.make`).
        prompt: index, text, messages or ids.
        completion: text or ids. The end token is appended to text that leaves room for it (`max_new_tokens`); ids are
            played as they are.

    Raises:
        ValueError: the completion is empty, too long or continues after its end, or a token is masked
            (`InvalidAction`).
        TypeError: not a single environment of textenv.
    """
    mdp = get_mdp(env)
    if not isinstance(env.unwrapped, TextEnv):
        raise TypeError(f"play needs a single environment (gym.make), got {type(env).__name__}.")
    tokens = mdp.encode_completion(completion).tolist()
    if isinstance(completion, str) and len(tokens) < mdp.max_new_tokens and mdp.eos_token_ids:
        tokens.append(mdp.eos_token_ids[0])
    if not tokens:
        raise ValueError("A completion must have at least one token to play, got none.")
    if len(tokens) > mdp.max_new_tokens:
        raise ValueError(f"The completion has {len(tokens)} tokens, more than max_new_tokens = {mdp.max_new_tokens}.")
    env.reset(options={"prompt": prompt})
    rewards, infos = [], []
    for t, token in enumerate(tokens):
        _, reward, terminated, _, info = env.step(token)
        rewards.append(float(reward))
        infos.append(info)
        if terminated and t < len(tokens) - 1:
            raise ValueError(f"The completion must end at its last token, got {tokens}, which ends at token {t}.")
    return Episode(
        prompt=str(env.unwrapped.episodes.state.prompt_text[0]),
        completion=mdp.decode(tokens),
        token_ids=tokens,
        rewards=np.array(rewards),
        terms={name: np.array([info["reward_terms"][name] for info in infos]) for name in infos[-1]["reward_terms"]},
        ref_log_probs=np.array([info["ref_log_prob"] for info in infos]),
        score=infos[-1].get("score"),
        gold_score=infos[-1].get("gold_score"),
        finish_reason=infos[-1].get("finish_reason"),
        tokens=list(map(str, mdp.tokenizer.convert_ids_to_tokens(tokens))),
    )
