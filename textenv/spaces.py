"""Spaces of the environments. Action spaces sample only actions that are allowed at present."""

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
    """`MaskedDiscrete` of V tokens; its initial mask has the first tokens that are allowed after every prompt."""
    return MaskedDiscrete(mdp.initial_action_mask.astype(np.int8))


class _MaskedSpace(spaces.Space[Any]):
    """What both spaces of actions with a mask share.

    Attributes:
        initial_mask: the mask before the first reset and after `seed`.
        mask: the actions that are allowed at present; the environment sets it.
    """

    initial_mask: Mask
    mask: Mask

    def seed(self, seed: Any = None) -> Any:
        """Seeds the sampler and restores the initial mask, until the environment sets another.

        The first sample of a space that was never seeded calls this too; it keeps the mask.
        """
        if seed is not None or self._np_random is not None:
            self.mask = self.initial_mask
        return super().seed(seed)


class MaskedDiscrete(_MaskedSpace, spaces.Discrete):
    """`Discrete(n)` whose `sample()` draws among the actions that `mask` allows at present.

    A random agent, and every checker that acts at random, thus takes no action that a sparse reference masks.

    Args:
        initial_mask: int8 [n], the mask before the first reset and after `seed`.
    """

    def __init__(self, initial_mask: Mask) -> None:
        super().__init__(len(initial_mask))
        self.initial_mask = self.mask = initial_mask

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """As `Discrete.sample`; without arguments, uniform over the actions allowed at present."""
        if mask is None and probability is None:
            mask = self.mask
        return super().sample(mask=mask, probability=probability)


class MaskedMultiDiscrete(_MaskedSpace, spaces.MultiDiscrete):
    """B `MaskedDiscrete`: `mask` is [B, n]."""

    def __init__(self, initial_mask: Mask, batch: int) -> None:
        n = len(initial_mask)
        super().__init__(np.full(batch, n, dtype=np.int64))
        self.initial_mask = self.mask = np.broadcast_to(initial_mask, (batch, n))

    def sample(self, mask: Any = None, probability: Any = None) -> Any:
        """As `MultiDiscrete.sample`; without arguments, each row uniform over its allowed actions."""
        if mask is None and probability is None:
            keys = self.np_random.random(self.mask.shape)
            return np.where(self.mask == 1, keys, -1.0).argmax(axis=1).astype(self.dtype)
        return super().sample(mask=mask, probability=probability)


@batch_space.register(MaskedDiscrete)
def _batch_masked_discrete(space: MaskedDiscrete, n: int = 1) -> MaskedMultiDiscrete:
    return MaskedMultiDiscrete(space.initial_mask, n)
