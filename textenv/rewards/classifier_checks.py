"""What a sequence classifier can be given, found out by its behaviour on a few short sequences.

    alone      logits = f(x),  one sequence without padding: what a score means
    padded     sequences of several lengths in a batch, padded on the right
    even       sequences of one length in a batch

Padding changes the scores of some models, for example where a convolution reads the tokens beside each other. A batch
changes those of a few, for example where experts have a capacity. At most four forward passes of at most 64 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from textenv.data import encode_text, split_around
from textenv.lm import PositionTables, rounding_tolerance

SHORT, LONG = 7, 12  # tokens of sequences
ROWS = 4  # short sequences; with a long one they fill 60 tokens

Forward = Callable[[list[list[int]]], Tensor]  # the logits [B, labels] of a batch


def sample_rows(tokenizer: Any, vocab_size: int, length: int, count: int, seed: int = 0) -> list[list[int]]:
    """Sequences of one length: ordinary tokens, and the special tokens that the tokenizer adds around them.

    Args:
        tokenizer: the classifier's.
        vocab_size: its vocabulary.
        length: the number of tokens; more where there would not be two ordinary ones.
        count: the number of sequences.
        seed: of the choice of tokens.
    """
    special = set(tokenizer.all_special_ids)
    ordinary = [i for i in sorted(set(tokenizer.get_vocab().values())) if i not in special and i < vocab_size] or [0]
    word = tokenizer.decode(ordinary[:1])
    inner = encode_text(word, tokenizer, add_special_tokens=False).ids
    whole = encode_text(word, tokenizer).ids
    try:
        before, after = split_around(whole, inner)
    except ValueError:  # such a tokenizer's tokens depend on each other: the model is tried without those it adds
        before, after = [], []
    chosen = np.random.default_rng(seed).choice(ordinary, (count, max(2, length - len(before) - len(after))))
    # from high to low ids, so that no run of them looks like positions
    return [before + sorted(row, reverse=True) + after for row in chosen.tolist()]


def find_limit(model: Any, row: list[int]) -> tuple[Tensor, int | None]:
    """The logits [1, labels] of a sequence alone, and the longest sequence that the model has positions for.

    None where no table of positions was seen, as with rotary embeddings.

    Raises:
        ValueError: the model is no classifier of token sequences.
    """
    tables = PositionTables(model, len(row))
    with tables:
        logits = logits_alone(model, row)
    labels = len(model.config.id2label)
    if logits.shape != (1, labels):
        raise ValueError(
            f"RewardModel needs a sequence classifier: the logits of one sequence must have the shape (1, {labels}), "
            f"one for each label; {type(model).__name__} gives {tuple(logits.shape)}."
        )
    if not logits.isfinite().all():
        raise ValueError(f"The weights of the {type(model).__name__} are not finite: its logits are nan or infinite.")
    return logits, min(tables.limits, default=None)


def logits_alone(model: Any, row: list[int]) -> Tensor:
    """The logits of one sequence, as the model gives them without any other argument.

    Raises:
        ValueError: the model fails.
    """
    try:
        logits: Tensor = model(input_ids=torch.tensor([row], device=model.device)).logits.float()
    except Exception as error:
        raise ValueError(
            f"RewardModel needs a sequence classifier; {type(model).__name__} fails on a sequence of {len(row)} tokens "
            f"with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    return logits


def may_pad(model: Any, short: list[list[int]], long: list[int], alone: Tensor, forward: Forward) -> bool:
    """Whether padded batches leave scores alone; if not, batches of sequences of one length do.

    Args:
        model: the classifier.
        short: sequences of one length.
        long: a longer sequence.
        alone: the logits of the first short one alone, [1, labels].
        forward: computes the logits of a batch as it will be called.

    Raises:
        ValueError: a sequence has other logits in any batch than alone.
    """
    long_alone = logits_alone(model, long)
    even, padded = _logits_or_error(forward, short), _logits_or_error(forward, [*short, long])
    computed = torch.cat([long_alone, alone, *(each for each in (even, padded) if isinstance(each, Tensor))])
    tolerance = rounding_tolerance(computed, model.dtype, spread(computed))

    def error(found: Tensor | str, truth: Tensor) -> float:
        return float("inf") if isinstance(found, str) else float((found - truth).abs().max())

    even_error = error(even if isinstance(even, str) else even[:1], alone)
    # a batch of one length shows the scores of more sequences than one, if it is right itself
    truth = even if isinstance(even, Tensor) and even_error <= tolerance else alone
    rows = [*range(len(truth)), -1]
    padded_error = error(padded if isinstance(padded, str) else padded[rows], torch.cat([truth, long_alone]))
    if padded_error <= tolerance and spread(computed) > 0:  # without a spread nothing is seen: even batches are safer
        return True
    if even_error <= tolerance:
        return False
    seen = [
        found if isinstance(found, str) else f"it is off by {off:.2g}"
        for found, off in ((padded, padded_error), (even, even_error))
    ]
    raise ValueError(
        f"The score of a sequence must not depend on the rest of its batch. That of {type(model).__name__} does: in a "
        f"padded batch {seen[0]}, in one of equal lengths {seen[1]}; scores spread over {spread(computed):.2g}. Use "
        "another classifier."
    )


def _logits_or_error(forward: Forward, rows: list[list[int]]) -> Tensor | str:
    """The logits of a batch, or a clause that says how it fails."""
    try:
        return forward(rows)
    except Exception as error:
        return f"it fails with {type(error).__name__} ({' '.join(str(error).split())[:100]})"


def spread(logits: Tensor) -> float:
    """The largest difference between two sequences' logits of a label; `logits` is [B, labels]."""
    return float((logits.amax(dim=0) - logits.amin(dim=0)).max())
