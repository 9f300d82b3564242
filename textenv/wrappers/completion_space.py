"""The spaces of `CompletionAction`: strings, and completions that the reference allows."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from textenv.mdp import TextMDP
from textenv.state import TextState


class AnyString(spaces.Text):
    """Strings of any length, in any script."""

    def __init__(self) -> None:
        super().__init__(max_length=1, min_length=0)

    def contains(self, x: object) -> bool:
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

    def seed(self, seed: int | None = None) -> int:
        """Seeds the space's generator and returns to the initial states, until the next reset.

        The first sample of a space that was never seeded calls this too; it keeps the states.
        """
        if seed is not None or self._np_random is not None:
            self.states = self.initial
        return super().seed(seed)

    def sample(self, mask: object = None, probability: object = None) -> str:
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
