"""Spaces: what is observed, and action spaces that sample only what is allowed now."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from textenv.mdp import TextMDP

Mask = NDArray[np.int8]


def observation_space(mdp: TextMDP) -> spaces.Dict:
    """`Dict(input_ids=Box(int64, (L,)), attention_mask=Box(int8, (L,)))`."""
    length = mdp.prompt_width + mdp.max_new_tokens
    return spaces.Dict(
        input_ids=spaces.Box(0, mdp.vocab_size - 1, (length,), np.int64),
        attention_mask=spaces.Box(0, 1, (length,), np.int8),
    )


def action_space(mdp: TextMDP) -> MaskedDiscrete:
    """`Discrete(V)` that knows with which tokens any text may begin."""
    return MaskedDiscrete(mdp.initial_action_mask.astype(np.int8))


class MaskedDiscrete(spaces.Discrete):
    """`Discrete(n)` whose `sample()` draws among the actions that `mask` allows at present.

    A random agent, and every checker that acts at random, thus stays within the rules of a sparse reference.

    Args:
        first: int8 [n], what every episode may begin with: the mask before the first reset and after `seed`.
    """

    def __init__(self, first: Mask) -> None:
        super().__init__(len(first))
        self.first = self.mask = first

    def seed(self, seed: int | None = None) -> Any:
        """Seed the sampler, which then stands at the start of an episode until the environment says otherwise."""
        self.mask = self.first
        return super().seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """As `Discrete.sample`; without arguments, uniform over the actions allowed at present."""
        if mask is None and probability is None:
            mask = self.mask
        return super().sample(mask=mask, probability=probability)


class MaskedMultiDiscrete(spaces.MultiDiscrete):
    """B `MaskedDiscrete` in a row: `mask` is [B, n]."""

    def __init__(self, first: Mask, batch: int) -> None:
        super().__init__(np.full(batch, len(first), dtype=np.int64))
        self.first = self.mask = np.broadcast_to(first, (batch, len(first)))

    def seed(self, seed: Any = None) -> Any:
        """As `MaskedDiscrete.seed`."""
        self.mask = self.first
        return super().seed(seed)

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """As `MultiDiscrete.sample`; without arguments, each row uniform over its allowed actions."""
        if mask is None and probability is None:
            keys = self.np_random.random(self.mask.shape)
            return np.where(self.mask == 1, keys, -1.0).argmax(axis=1).astype(self.dtype)
        return super().sample(mask=mask, probability=probability)


@batch_space.register(MaskedDiscrete)
def _batch_masked_discrete(space: MaskedDiscrete, n: int = 1) -> MaskedMultiDiscrete:
    return MaskedMultiDiscrete(space.first, n)
