"""Hypothesis strategies for unit tests of rewards: prompts and completions of a task with a small vocabulary.

>>> import gymnasium as gym, textenv
>>> from hypothesis import given, settings
>>> from textenv.strategies import completions, prompts
>>> env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=3)
>>> @settings(max_examples=5)
... @given(prompts(env), completions(env))
... def test(prompt, tokens):
...     assert 1 <= len(tokens) <= 3

(It needs hypothesis: `pip install hypothesis`.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from textenv.mdp import TextMDP
from textenv.unwrap import EnvLike, get_mdp


def prompts(env: EnvLike | TextMDP) -> SearchStrategy[str]:
    """The prompts of a task, as texts; it shrinks to the first."""
    return st.sampled_from(get_mdp(env).prompts.texts)


def completions(env: EnvLike | TextMDP, prompt: object = 0, *, finished: bool = True) -> SearchStrategy[list[int]]:
    """Completions of a prompt, as token ids, of tokens that the reference allows; it shrinks to short ones.

    Args:
        env: any environment of textenv.
        prompt: index, text, messages or ids.
        finished: whole completions, up to an EOS token or `max_new_tokens`; False: any beginning of one, also none.
    """

    @st.composite
    def draw_completion(draw: DrawFn) -> list[int]:
        mdp, tokens = get_mdp(env), list[int]()
        for _ in range(mdp.max_new_tokens):
            if not finished and draw(st.booleans()):
                break
            allowed = np.flatnonzero(mdp.next_ref_log_probs(mdp.make_state(prompt, tokens))[0] > -np.inf).tolist()
            ends = [token for token in allowed if mdp.is_eos[token]]
            token = draw(st.sampled_from([*ends, *(token for token in allowed if token not in ends)]))
            if not finished and mdp.is_eos[token]:
                break
            tokens.append(token)
            if mdp.is_eos[token]:
                break
        return tokens

    strategy: Callable[[], SearchStrategy[list[int]]] = draw_completion
    return strategy()


def texts(env: EnvLike | TextMDP, prompt: object = 0) -> SearchStrategy[str]:
    """Whole completions of a prompt, as texts without special tokens."""
    return completions(env, prompt).map(get_mdp(env).decode)
