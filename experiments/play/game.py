"""One episode that a person plays: tokens by name, the reference's choices, and undo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from textenv import InvalidAction, TextEnv, TextMDP
from textenv.rendering import likeliest

SPACES = ("▁", "Ġ")  # how tokens spell the space that they begin with


@dataclass(frozen=True)
class Played:
    """A token that was played.

    Attributes:
        token: its id.
        name: its spelling.
        reward: r_t without -beta log pi(a_t|s_t): what the environment knows, and all there is of a player who always
            plays this token.
        terms: the terms whose sum is the reward.
        ref_log_prob: log pi_ref(a_t|s_t).
    """

    token: int
    name: str
    reward: float
    terms: dict[str, float]
    ref_log_prob: float


class Game:
    """An episode of a task, played token by token.

    Attributes:
        mdp: the task.
        prompt: the prompt as text.
        prompt_index: its index in the task's prompts, or -1.
        played: the tokens so far.
        score, gold_score, finish_reason: of the episode once it has ended, else None; no gold score without a gold
            reward.

    Args:
        mdp: the task.
        prompt: the prompt as text; None draws one of the task's.
        seed: draws the prompt.

    Raises:
        ValueError: the prompt is refused.
    """

    def __init__(self, mdp: TextMDP, prompt: str | None, seed: int) -> None:
        self.mdp, self.env = mdp, TextEnv(mdp)
        self.env.reset(seed=seed, options=None if prompt is None else {"prompt": prompt})
        state = self.env.episodes.state
        self.prompt, self.prompt_index = str(state.prompt_text[0]), int(state.prompt[0])
        self._start: object = self.prompt_index if self.prompt_index >= 0 else prompt
        self.played: list[Played] = []
        self.score: float | None = None
        self.gold_score: float | None = None
        self.finish_reason: str | None = None

    @property
    def log_probs(self) -> NDArray[np.float64]:
        """log pi_ref of each next token, [V]; -inf where it is masked."""
        return np.asarray(self.env.episodes.ref_log_probs[0], dtype=np.float64)

    @property
    def ended(self) -> bool:
        """Whether the completion has ended."""
        return self.finish_reason is not None

    @property
    def completion(self) -> str:
        """The completion so far, decoded."""
        return self.mdp.decode([each.token for each in self.played])

    def choices(self, top: int) -> list[int]:
        """The tokens that the reference finds likeliest, at most `top`, the likeliest first; none that is masked."""
        return likeliest(self.log_probs, top)

    def name(self, token: int) -> str:
        """The spelling of a token."""
        return str(self.mdp.tokenizer.convert_ids_to_tokens([token])[0])

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each spelling; the first one where several tokens have it."""
        names = self.mdp.tokenizer.convert_ids_to_tokens(list(range(self.mdp.vocab_size)))
        return {str(name): token for token, name in reversed(list(enumerate(names)))}

    def tokens_of(self, text: str) -> list[int]:
        """The token of this spelling, else the tokens of the text, else those of spellings with spaces between them.

        Raises:
            ValueError: the tokenizer refuses the text, or finds no token in it.
        """
        marks = [mark + text[1:] for mark in SPACES if text.startswith(" ")]
        if known := [self.ids[name] for name in (text, *marks) if name in self.ids]:
            return known[:1]
        try:
            tokens = [int(token) for token in self.mdp.encode_completion(text)]
        except ValueError:
            tokens = [self.ids.get(word, -1) for word in text.split()]
            if -1 in tokens:
                raise
        if not tokens:
            raise ValueError(f"There is no token in {text!r}.")
        return tokens

    def play(self, token: int) -> Played:
        """Appends a token.

        Raises:
            textenv.InvalidAction: it is masked, or no token.
            textenv.rewards.RewardError: the completion has ended, and the reward failed.
        """
        if 0 <= token < self.mdp.vocab_size and self.log_probs[token] == -np.inf:
            raise InvalidAction(f"{self.name(token)} is masked here: the reference gives it probability 0.")
        _, reward, terminated, _, info = self.env.step(token)
        played = Played(token, self.name(token), reward, dict(info["reward_terms"]), float(info["ref_log_prob"]))
        self.played.append(played)
        if terminated:
            self.score, self.gold_score, self.finish_reason = (
                info["score"],
                info.get("gold_score"),
                info["finish_reason"],
            )
        return played

    def undo(self, count: int = 1) -> None:
        """Takes the last `count` tokens back, or as many as there are."""
        self.played = self.played[: max(len(self.played) - count, 0)]
        self.score = self.gold_score = self.finish_reason = None
        self.env.reset(options={"prompt": self._start, "completion": [each.token for each in self.played]})
