"""Wrappers of a single environment that change the form of its observation or action, for agents that need another."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from textenv.env import Observation, TextEnv
from textenv.mdp import InvalidAction, TextMDP
from textenv.state import Array, TextState


class FlatTokens(gym.ObservationWrapper[Array, np.int64, Observation], RecordConstructorArgs):
    """The observation as one `MultiDiscrete`: for agents without `Dict` observations, which usually one-hot it.

    Column l holds the token in column l of `input_ids`, or V where there is none: int64 [L], values 0 .. V. Masks are
    unchanged: `info["action_mask"]` and `action_masks()`.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import FlatTokens
    >>> env = FlatTokens(gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3))
    >>> env.reset(options={"prompt": "a", "completion": "b"})[0].tolist()
    [1, 2, 4, 4]
    """

    def __init__(self, env: Any) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        mdp = _text_env(env).mdp
        if set(getattr(env.observation_space, "spaces", ())) != {"input_ids", "attention_mask"}:
            raise ValueError(f"FlatTokens needs a Dict of input_ids and attention_mask, got {env.observation_space}.")
        self.padding_value = mdp.vocab_size
        length = mdp.prompt_width + mdp.max_new_tokens
        self.observation_space = spaces.MultiDiscrete(np.full(length, self.padding_value + 1))

    def observation(self, observation: Observation) -> Array:
        """The tokens, and V in columns without one."""
        return np.where(observation["attention_mask"] == 1, observation["input_ids"], self.padding_value)

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        return _text_env(self.env).action_masks()


class MaskInObservation(gym.ObservationWrapper[dict[str, Array], np.int64, Observation], RecordConstructorArgs):
    """Adds the action mask to the observation, for libraries whose networks get nothing but the observation.

    int8 [V], 1 where a token is allowed, under the key that the library uses: `action_mask` in RLlib's models, `mask`
    in Tianshou's.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import MaskInObservation
    >>> env = MaskInObservation(gym.make("textenv/TajMahal-v0"), key="mask")
    >>> sorted(env.reset(seed=0)[0])
    ['attention_mask', 'input_ids', 'mask']
    """

    def __init__(self, env: Any, key: str = "action_mask") -> None:
        RecordConstructorArgs.__init__(self, key=key)
        gym.ObservationWrapper.__init__(self, env)
        self.key = key
        mask = spaces.Box(0, 1, (_text_env(env).mdp.vocab_size,), np.int8)
        if not isinstance(env.observation_space, spaces.Dict) or key in env.observation_space.spaces:
            raise ValueError(
                f"MaskInObservation adds {key!r} to a Dict without that key, got {env.observation_space}; pass "
                "another key=, or wrap the environment before its observation is made flat."
            )
        self.observation_space: Any = spaces.Dict({**env.observation_space.spaces, key: mask})

    def observation(self, observation: Observation) -> dict[str, Array]:
        """The observation with the mask of the next action."""
        return {**observation, self.key: self.action_masks().astype(np.int8)}

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        return _text_env(self.env).action_masks()


class CompletionAction(gym.Wrapper[str, str, Observation, np.int64], RecordConstructorArgs):
    """Whole completions as actions: `step("a whole completion")` takes its tokens as actions and ends the episode.

    The observation is the sequence so far as text, with a space between prompt and completion. The reward is the sum of
    the tokens' rewards, so the return is that of the wrapped environment. The end token (the first of
    `mdp.eos_token_ids`) is appended to a completion shorter than the limit, as in `testing.play`.
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
        self.text_env = _text_env(env)
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(f"CompletionAction needs an environment whose actions are tokens, got {env.action_space}.")
        self.observation_space = AnyString()
        self.action_space = self.completions = CompletionSpace(self.text_env.mdp)
        self.ended = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        self.ended = False
        self.completions.states = self.text_env.episodes.state
        return self._text(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
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

    def _tokens(self, completion: str) -> list[int]:
        """Returns the completion's tokens after checking that it ends and that each token is allowed."""
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
        prefixes = _prefixes(mdp, state, tokens)
        log_probs = mdp.next_ref_log_probs(prefixes)[np.arange(len(tokens)), tokens]
        if np.isneginf(log_probs).any():
            row = int(np.argmax(np.isneginf(log_probs)))
            raise mdp.masked_action_error(prefixes, row, tokens[row])
        return [int(token) for token in tokens]

    def _text(self) -> str:
        state, width = self.text_env.episodes.state, self.text_env.mdp.prompt_width
        completion = self.text_env.mdp.decode(state.input_ids[0, width : width + state.time[0]])
        prompt = str(state.prompt_text[0])
        return f"{prompt} {completion}" if completion and not completion[0].isspace() else prompt + completion


class AnyString(spaces.Text):
    """Strings of any length, in any script."""

    def __init__(self) -> None:
        super().__init__(max_length=1, min_length=0)

    def contains(self, x: Any) -> bool:
        """Whether it is a string."""
        return isinstance(x, str)


class CompletionSpace(AnyString):
    """Strings; `sample()` draws a completion that is allowed in all of `states`.

    `states` is the state of the episode in progress; between episodes, and after `seed` (as in `MaskedDiscrete`), the
    initial states of all prompts.
    """

    def __init__(self, mdp: TextMDP) -> None:
        super().__init__()
        self.mdp = mdp
        prompts = np.arange(1 if mdp.full_support else len(mdp.prompts.texts))  # one suffices if nothing is masked
        self.initial = mdp.empty_state(len(prompts))
        mdp.reset_rows(self.initial, prompts, prompts)
        self.states = self.initial

    def seed(self, seed: Any = None) -> Any:
        """Seeds the space's generator and returns to the initial states, until the next reset."""
        self.states = self.initial
        return super().seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Returns a completion whose tokens are drawn uniformly among those that are allowed in all of the states.

        If 100 tries do not find one, it is a completion for the first state alone.
        """
        tries = (self._draw(self.states) for _ in range(100))
        tokens = next(filter(None, tries), None) or self._draw(self.states[:1])
        text = self.mdp.decode(tokens)
        limit = self.mdp.max_new_tokens - int(self.states.time[0])
        while len(self.mdp.encode_completion(text)) > limit:  # decoding and encoding may add tokens (invalid UTF-8)
            text = text[:-1]
        return text

    def _draw(self, start: TextState) -> list[int]:
        """Returns a random completion of all of these states; no tokens if it reaches a state without a common one."""
        mdp, states = self.mdp, self.mdp.empty_state(len(start))
        states.put(np.arange(len(states)), start)
        tokens: list[int] = []
        while states.time[0] < mdp.max_new_tokens and not (tokens and mdp.is_eos[tokens[-1]]):
            allowed = np.flatnonzero((mdp.next_ref_log_probs(states) > -np.inf).all(axis=0))
            if len(allowed) == 0:
                return []
            tokens.append(int(self.np_random.choice(allowed)))
            column = mdp.prompt_width + int(states.time[0])
            states.input_ids[:, column] = tokens[-1]
            states.attention_mask[:, column] = 1
            states.time += 1
        return tokens


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


def _text_env(env: Any) -> TextEnv:
    if not isinstance(inner := env.unwrapped, TextEnv):
        raise TypeError(
            f"Expected a single environment of textenv (gym.make('textenv/...')), got {type(inner).__name__}."
        )
    return inner
