"""Makes a `Reference` of what users pass, and checks what it returns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from textenv.arguments import is_scalar, shown
from textenv.data import Prompts, Tokenizer, token_id
from textenv.references.protocol import Reference
from textenv.references.tables import uniform


def as_reference(reference: Any, vocab_size: int) -> Reference:
    """Returns a `Reference`, given None (uniform), a reference, or a causal LM (a model, a path or a hub id).

    Raises:
        ValueError: the reference's vocabulary is not the tokenizer's, or the path is empty.
        TypeError: it is none of these.
    """
    if reference is None:
        return uniform(vocab_size)
    if isinstance(reference, type):
        raise TypeError(
            f"A reference must be an object, got the class {reference.__name__}; make or load an object of it, or pass "
            "the path of a model."
        )
    if isinstance(reference, str) and not reference.strip():
        raise ValueError(
            f"The path or hub id of a reference must not be empty, got {reference!r}; pass None for a uniform one."
        )
    if not callable(getattr(reference, "log_probs", None)):
        inner = getattr(reference, "model", None)
        if hasattr(inner, "get_output_embeddings") and not hasattr(reference, "get_output_embeddings"):
            raise TypeError(
                f"A reference must be a causal language model itself, got {type(reference).__name__}, which is around "
                "one; pass its model: policy.model."
            )
        from textenv.references.causal_lm import CausalLMReference  # imports torch, so only where there is a model

        reference = CausalLMReference(reference, vocab_size=vocab_size)
    own_size = getattr(reference, "vocab_size", vocab_size)
    if own_size != vocab_size:
        raise ValueError(
            f"The reference has a vocabulary of {own_size} tokens, the tokenizer one of {vocab_size}; "
            "they must be the same, token for token."
        )
    checked: Reference = reference
    return checked


def resolve_eos(eos_token_id: Any, reference: Reference, tokenizer: Tokenizer, vocab_size: int) -> list[int]:
    """Returns the EOS tokens: those that are given, else the reference's, else the tokenizer's.

    Args:
        eos_token_id: the id of a token, or its spelling, or several of them; None for those of reference or tokenizer.
        reference: may have an `eos_token_id` of its own.
        tokenizer: its `eos_token_id` is the last choice.
        vocab_size: V.

    Raises:
        ValueError: one of them is not in the vocabulary, or is neither an id nor a spelling.
    """
    if eos_token_id is None:
        eos_token_id = getattr(reference, "eos_token_id", None)
    if eos_token_id is None:
        eos_token_id = tokenizer.eos_token_id
    if eos_token_id is None:
        return []
    given = [eos_token_id] if is_scalar(eos_token_id) else list(eos_token_id)
    ids = [token_id(token, tokenizer) if isinstance(token, str) else token for token in given]
    for i in ids:
        if not isinstance(i, int | np.integer) or isinstance(i, bool) or not 0 <= i < vocab_size:
            raise ValueError(f"eos_token_id must be in 0 .. {vocab_size - 1}, or a token's spelling, got {i!r}.")
    return [int(i) for i in ids]


def first_tokens(reference: Reference, prompts: Prompts, vocab_size: int) -> NDArray[np.bool_]:
    """Returns bool [V], the tokens that may begin a completion of every prompt; checks what the reference returns.

    Raises:
        ValueError: it returns no numpy array, another shape, values that are not log-probabilities, or allows no token
            after a prompt.
    """
    mask = np.ones(vocab_size, dtype=np.bool_)
    # where nothing is masked, one prompt suffices to check the shape and the sum
    count = 1 if getattr(reference, "full_support", False) else len(prompts.texts)
    for start in range(0, count, 1024):
        rows = slice(start, min(start + 1024, count))
        log_probs = reference.log_probs(prompts.input_ids[rows], prompts.attention_mask[rows])
        if not isinstance(log_probs, np.ndarray) or log_probs.dtype.kind not in "fiu":
            raise ValueError(
                f"The reference must return log-probabilities as a numpy array of floats, got {shown(log_probs)}; "
                "convert what its log_probs returns: tensor.float().cpu().numpy(), or numpy.array(list)."
            )
        if log_probs.shape != (len(prompts.input_ids[rows]), vocab_size):
            raise ValueError(
                f"The reference must return log-probabilities of shape [B, {vocab_size}], one per token of the "
                f"tokenizer, got {log_probs.shape}."
            )
        total = np.exp(log_probs.astype(np.float64)).sum(axis=1)
        stuck, wrong = total == 0, ~np.isclose(total, 1.0, atol=1e-3)
        if (wrong & ~stuck).any():
            row = int(np.argmax(wrong & ~stuck))
            raise ValueError(
                f"The reference must return log-probabilities; after the prompt {prompts.texts[start + row]!r} their "
                f"probabilities sum to {total[row]:.4g}, not to 1."
            )
        if stuck.any():
            prompt = prompts.texts[start + int(np.argmax(stuck))]
            raise ValueError(
                f"The reference allows no token after the prompt {prompt!r}: drop the prompt, or give a token a "
                "positive probability there."
            )
        mask &= (log_probs > -np.inf).all(axis=0)
    return mask
