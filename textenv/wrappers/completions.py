"""Whole completions as actions, for agents whose actions are strings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from textenv.actions import InvalidAction
from textenv.env import Observation
from textenv.mdp import TextMDP
from textenv.state import TextState
from textenv.stepping import Info
from textenv.wrappers.completion_space import AnyString, CompletionSpace
from textenv.wrappers.terminate_illegal import TerminateIllegal
from textenv.wrappers.text_env import layers, text_env


class CompletionAction(gym.Wrapper[str, str, Observation, np.int64], RecordConstructorArgs):
    """Whole completions as actions: `step("a whole completion")` takes its tokens as actions and ends the episode.

    The observation is the sequence so far as text, with a space between prompt and completion. The reward is the sum of
    the tokens' rewards, so the return is that of the wrapped environment. The end token (the first of
    `mdp.eos_token_ids`) is appended to a completion shorter than the limit, as in `testing.play`.
    A completion with a masked token is refused; over `TerminateIllegal` it ends at that token.
    `info` is that of the last token, plus `token_ids` and `token_rewards`, the tokens and the reward of each.
    `action_space.sample()` is a completion that the reference allows. Strings of any length and script do not fit into
    shared memory: an `AsyncVectorEnv` needs `shared_memory=False`.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import CompletionAction
    >>> env = CompletionAction(gym.make("textenv/TajMahal-v0", kl_coef=0.0))
    >>> env.reset(options={"prompt": "where is the taj mahal"})[0]
    'where is the taj mahal'
    >>> observation, reward, terminated, truncated, info = env.step("it is in agra")
    >>> observation, reward, terminated
    ('where is the taj mahal it is in agra', 1.0, True)
    """

    def __init__(self, env: Any) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.text_env = text_env(env)
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(f"CompletionAction needs an environment whose actions are tokens, got {env.action_space}.")
        self.observation_space = AnyString()
        self.action_space = self.completions = CompletionSpace(self.text_env.mdp)
        self.ended = True
        self.illegal_ends = any(isinstance(layer, TerminateIllegal) for layer in layers(env))

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[str, Info]:
        self.env.reset(seed=seed, options=options)
        self.ended = False
        self.completions.states = self.text_env.episodes.state
        return self._text(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, Info]:
        """Plays a completion to its end. An error leaves the state unchanged.

        Raises:
            ResetNeeded: no episode is in progress.
            InvalidAction: the action is not a string, or one of its tokens is masked.
            ValueError: the completion does not end, is too long, continues after an end token, or has a word that is
                not in the tokenizer's vocabulary.
        """
        if not isinstance(action, str):
            raise InvalidAction(f"An action must be a whole completion, a string, got {action!r}.")
        if self.ended:
            raise gym.error.ResetNeeded("A completion ends the episode: call reset() before the next one.")
        tokens = self._tokens(action)
        rewards: list[float] = []
        with self._restore_on_error():
            for token in tokens:
                _, reward, terminated, truncated, info = self.env.step(np.int64(token))  # type: ignore[arg-type]
                rewards.append(float(reward))
                if terminated or truncated:  # a TimeLimit may truncate
                    break
        self.completions.states, self.ended = self.completions.initial, True
        info = {name: value for name, value in info.items() if name != "action_mask"}
        return (
            self._text(),
            sum(rewards),
            terminated,
            truncated,
            info | {"token_ids": tokens[: len(rewards)], "token_rewards": rewards},
        )

    @contextmanager
    def _restore_on_error(self) -> Iterator[None]:
        """Restores the episode, and what the wrappers in between count, if the step of a token raises."""
        between = layers(self.env)
        counts = [dict(vars(layer)) for layer in between]
        with self.text_env.restore_on_error():
            try:
                yield
            except BaseException:
                for layer, before in zip(between, counts, strict=True):
                    vars(layer).update(before)
                raise

    def _tokens(self, completion: str) -> list[int]:
        """Returns the completion's tokens after checking that it ends and that no token is refused."""
        mdp, state = self.text_env.mdp, self.text_env.episodes.state
        limit = mdp.max_new_tokens - int(state.time[0])
        tokens = mdp.encode_completion(completion).tolist()
        if len(tokens) < limit and mdp.eos_token_ids and not (tokens and mdp.is_eos[tokens[-1]]):
            tokens.append(mdp.eos_token_ids[0])
        ends = mdp.is_eos[tokens]
        if not 0 < len(tokens) <= limit or ends[:-1].any() or not (ends[-1] or len(tokens) == limit):
            raise ValueError(
                f"An action must be a whole completion: its last token, and no other, is an end token, or it has all "
                f"{limit} tokens that are left; {completion!r} has the tokens {tokens}."
            )
        if self.illegal_ends:
            return [int(token) for token in tokens]
        prefixes = _prefixes(mdp, state, tokens)
        log_probs = mdp.next_ref_log_probs(prefixes)[np.arange(len(tokens)), tokens]
        if np.isneginf(log_probs).any():
            row = int(np.argmax(np.isneginf(log_probs)))
            raise mdp.masked_action_error(prefixes, row, tokens[row])
        return [int(token) for token in tokens]

    def _text(self) -> str:
        completion, prompt = self.text_env.episodes.completion(0), str(self.text_env.episodes.state.prompt_text[0])
        return f"{prompt} {completion}" if completion and not completion[0].isspace() else prompt + completion


def _prefixes(mdp: TextMDP, state: TextState, tokens: list[int]) -> TextState:
    """Returns the state before each token, one row each, starting from row 0 of `state`."""
    prefixes = mdp.empty_state(len(tokens))
    prefixes.put(np.arange(len(tokens)), state)
    first_empty = mdp.prompt_width + int(state.time[0])
    for i, token in enumerate(tokens[:-1]):
        prefixes.input_ids[i + 1 :, first_empty + i] = token
        prefixes.attention_mask[i + 1 :, first_empty + i] = 1
    prefixes.time += np.arange(len(tokens))
    return prefixes
