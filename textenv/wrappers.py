"""Other faces of the same process, for agents that want another observation or another action."""

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
    """The text as one `MultiDiscrete`: for agents without `Dict` observations, which usually one-hot it.

    Column l holds the token in column l of `input_ids`, or V where the text is blank: int64 [L], values 0 .. V. Masks
    are as before: `info["action_mask"]` and `action_masks()`.

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
            raise ValueError(f"FlatTokens makes one row of input_ids and attention_mask, got {env.observation_space}.")
        self.blank = mdp.vocab_size
        length = mdp.prompt_width + mdp.max_new_tokens
        self.observation_space = spaces.MultiDiscrete(np.full(length, self.blank + 1))

    def observation(self, observation: Observation) -> Array:
        """The tokens, and V on blanks."""
        return np.where(observation["attention_mask"] == 1, observation["input_ids"], self.blank)

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        return _text_env(self.env).action_masks()


class MaskInObservation(gym.ObservationWrapper[dict[str, Array], np.int64, Observation], RecordConstructorArgs):
    """The mask as one more part of the observation, for libraries whose networks see nothing else.

    int8 [V], 1 where a token is allowed, under the name that the library looks for: `action_mask` in RLlib's models,
    `mask` in Tianshou's.

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
                f"MaskInObservation adds {key!r} to a Dict that has no such part, got {env.observation_space}; pass "
                "another key=, or wrap the environment before its observation is made flat."
            )
        self.observation_space: Any = spaces.Dict({**env.observation_space.spaces, key: mask})

    def observation(self, observation: Observation) -> dict[str, Array]:
        """The text, and what may be written next."""
        return {**observation, self.key: self.action_masks().astype(np.int8)}

    def action_masks(self) -> NDArray[np.bool_]:
        """bool [V], which tokens are allowed now: sb3-contrib's convention."""
        return _text_env(self.env).action_masks()


class CompletionAction(gym.Wrapper[str, str, Observation, np.int64], RecordConstructorArgs):
    """Whole answers as actions: `step("a whole answer")` writes it token by token and ends the episode.

    The observation is the text so far, prompt and answer, shown with a space between them. The reward is the sum of
    what the tokens were paid: an episode returns the same in total. An answer that leaves room is closed with the end
    token (the first of `mdp.eos_token_ids`), as in `testing.play`.
    `info` is that of the last token, with `token_ids` and `token_rewards`, what was written and what each was paid.
    `action_space.sample()` is an answer that the reference allows. Strings of any length and script do not fit into
    shared memory: `AsyncVectorEnv` of it needs `shared_memory=False`.

    >>> import gymnasium as gym, textenv
    >>> from textenv.wrappers import CompletionAction
    >>> env = CompletionAction(gym.make("textenv/TajMahal-v0", kl_coef=0.0))
    >>> env.reset(options={"prompt": "where is the taj mahal"})[0]
    'where is the taj mahal'
    >>> text, reward, terminated, truncated, info = env.step("it is in agra")
    >>> text, reward, terminated
    ('where is the taj mahal it is in agra', 1.0, True)
    """

    def __init__(self, env: Any) -> None:
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.text_env = _text_env(env)
        if not isinstance(env.action_space, spaces.Discrete):
            raise ValueError(
                f"CompletionAction writes token by token, so actions must be tokens, got {env.action_space}."
            )
        self.observation_space = AnyString()
        self.action_space = self.answers = CompletionSpace(self.text_env.mdp)
        self.ended = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        self.ended = False
        self.answers.states = self.text_env.episodes.texts
        return self._text(), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Write an answer.

        Raises:
            ResetNeeded: no episode is in progress.
            InvalidAction: it is no string, or a token of it is masked. Nothing is written then.
            ValueError: it is empty and cannot end, is too long, goes on after an end token, or has a word that the
                tokenizer does not know.
        """
        if not isinstance(action, str):
            raise InvalidAction(f"An action is a whole answer, a string, got {action!r}.")
        if self.ended:
            raise gym.error.ResetNeeded("An answer ends the episode: call reset() before the next one.")
        tokens = self._tokens(action)
        paid = []
        for token in tokens:
            _, reward, terminated, truncated, info = self.env.step(np.int64(token))  # type: ignore[arg-type]
            paid.append(float(reward))
            if terminated or truncated:  # by a TimeLimit in between
                break
        self.answers.states, self.ended = self.answers.first, True
        info = {name: value for name, value in info.items() if name != "action_mask"}
        return (
            self._text(),
            sum(paid),
            terminated,
            truncated,
            info | {"token_ids": tokens[: len(paid)], "token_rewards": paid},
        )

    def _tokens(self, answer: str) -> list[int]:
        """The answer's tokens, each of them allowed where it stands."""
        mdp, texts = self.text_env.mdp, self.text_env.episodes.texts
        room = mdp.max_new_tokens - int(texts.time[0])
        tokens = mdp.encode_completion(answer).tolist()
        if len(tokens) < room and mdp.eos_token_ids and not (tokens and mdp.is_eos[tokens[-1]]):
            tokens.append(mdp.eos_token_ids[0])
        ends = mdp.is_eos[tokens]
        if not 0 < len(tokens) <= room or ends[:-1].any() or not (ends[-1] or len(tokens) == room):
            raise ValueError(
                f"An action must be a whole answer: one that ends itself, with an end token at its end alone, or takes "
                f"all {room} tokens that are left and no more; {answer!r} has the tokens {tokens}."
            )
        begun = _prefixes(mdp, texts, tokens)
        log_probs = mdp.next_ref_log_probs(begun)[np.arange(len(tokens)), tokens]
        if np.isneginf(log_probs).any():
            row = int(np.argmax(np.isneginf(log_probs)))
            raise mdp.masked_action_error(begun, row, tokens[row])
        return [int(token) for token in tokens]

    def _text(self) -> str:
        texts, width = self.text_env.episodes.texts, self.text_env.mdp.prompt_width
        answer = self.text_env.mdp.decode(texts.input_ids[0, width : width + texts.time[0]])
        prompt = str(texts.prompt_text[0])
        return f"{prompt} {answer}" if answer and not answer[0].isspace() else prompt + answer


class AnyString(spaces.Text):
    """Strings of any length, in any script."""

    def __init__(self) -> None:
        super().__init__(max_length=1, min_length=0)

    def contains(self, x: Any) -> bool:
        """Whether it is a string."""
        return isinstance(x, str)


class CompletionSpace(AnyString):
    """Strings; `sample()` draws among the answers that are allowed in `states`.

    `states` is the text in progress; between episodes, and after `seed` (as in `MaskedDiscrete`), every prompt.
    """

    def __init__(self, mdp: TextMDP) -> None:
        super().__init__()
        self.mdp = mdp
        prompts = np.arange(1 if mdp.full_support else len(mdp.prompts.texts))  # any stands for all if all may
        self.first = mdp.empty_state(len(prompts))
        mdp.reset_rows(self.first, prompts, prompts)
        self.states = self.first

    def seed(self, seed: Any = None) -> Any:
        """Seed the sampler, which then stands at the start of an episode until the next reset."""
        self.states = self.first
        return super().seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """An answer, its tokens drawn uniformly among those that are allowed in all of the states.

        If 100 tries do not find one, an answer to the first of them.
        """
        tries = (self._draw(self.states) for _ in range(100))
        tokens = next(filter(None, tries), None) or self._draw(self.states[:1])
        text = self.mdp.decode(tokens)
        room = self.mdp.max_new_tokens - int(self.states.time[0])
        while len(self.mdp.encode_completion(text)) > room:  # random tokens, read back, may be more: broken bytes, say
            text = text[:-1]
        return text

    def _draw(self, beginnings: TextState) -> list[int]:
        """Tokens of an answer to all of these texts; none if they come to where they share no token."""
        mdp, states = self.mdp, self.mdp.empty_state(len(beginnings))
        states.put(np.arange(len(states)), beginnings)
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


def _prefixes(mdp: TextMDP, texts: TextState, tokens: list[int]) -> TextState:
    """A row a token: the text in progress (row 0 of `texts`) and the tokens before it."""
    begun = mdp.empty_state(len(tokens))
    begun.put(np.arange(len(tokens)), texts)
    written = mdp.prompt_width + int(texts.time[0])
    for i, token in enumerate(tokens[:-1]):
        begun.input_ids[i + 1 :, written + i] = token
        begun.attention_mask[i + 1 :, written + i] = 1
    begun.time += np.arange(len(tokens))
    return begun


def _text_env(env: Any) -> TextEnv:
    if not isinstance(inner := env.unwrapped, TextEnv):
        raise TypeError(
            f"Expected a single environment of textenv (gym.make('textenv/...')), got {type(inner).__name__}."
        )
    return inner
