"""From what users pass to a reference, and checks of its answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.data import Prompts
from textenv.references.protocol import Reference
from textenv.references.tables import uniform


def as_reference(reference: Any, vocab_size: int) -> Reference:
    """A `Reference` from what users pass: None (uniform), a reference, or a causal LM (a model or where to load it).

    Raises:
        ValueError: the reference speaks another vocabulary than the tokenizer.
        TypeError: it is none of these.
    """
    if reference is None:
        return uniform(vocab_size)
    if not hasattr(reference, "log_probs"):
        from textenv.references.causal_lm import CausalLMReference  # torch is imported where a model is, not before

        reference = CausalLMReference(reference, vocab_size=vocab_size)
    own = getattr(reference, "vocab_size", vocab_size)
    if own != vocab_size:
        raise ValueError(
            f"The reference has a vocabulary of {own} tokens, the tokenizer one of {vocab_size}; "
            "they must be the same, token for token."
        )
    checked: Reference = reference
    return checked


def first_tokens(reference: Reference, prompts: Prompts, vocab_size: int) -> NDArray[np.bool_]:
    """bool [V], the tokens with which an answer to any of the prompts may begin; checks how the reference answers.

    Raises:
        ValueError: it answers with another shape, not with log-probabilities, or allows nothing after some prompt.
    """
    mask = np.ones(vocab_size, dtype=np.bool_)
    # where nothing is masked, one prompt will do to see that the reference answers as it should
    count = 1 if getattr(reference, "full_support", False) else len(prompts.texts)
    for start in range(0, count, 1024):
        rows = slice(start, min(start + 1024, count))
        log_probs = reference.log_probs(prompts.input_ids[rows], prompts.attention_mask[rows])
        if log_probs.shape != (len(prompts.input_ids[rows]), vocab_size):
            raise ValueError(
                f"The reference must answer with [B, {vocab_size}] log-probabilities, one a token of the tokenizer, "
                f"got {log_probs.shape}."
            )
        total = np.exp(log_probs.astype(np.float64)).sum(axis=1)
        stuck, wrong = total == 0, ~np.isclose(total, 1.0, atol=1e-3)
        if (wrong & ~stuck).any():
            row = int(np.argmax(wrong & ~stuck))
            raise ValueError(
                f"The reference must answer with log-probabilities; those after the prompt "
                f"{prompts.texts[start + row]!r} belong to probabilities that sum to {total[row]:.4g}, not to 1."
            )
        if stuck.any():
            prompt = prompts.texts[start + int(np.argmax(stuck))]
            raise ValueError(f"The reference allows no token after the prompt {prompt!r}: drop it, or let it answer.")
        mask &= (log_probs > -np.inf).all(axis=0)
    return mask
