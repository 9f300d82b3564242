"""A rollout in a notebook: its first completions, with each token in the colour of its reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from textenv.data import Tokenizer
from textenv.html import Html, block_html, largest, legend, number_text, text_html, tokens_html

FEW = 5  # completions to show


class Completions(Protocol):
    """What is shown of a `Rollout`, see there."""

    mask: Tensor
    log_probs: Tensor
    ref_log_probs: Tensor
    rewards: Tensor
    scores: Tensor
    stopped: Tensor
    values: Tensor | None

    @property
    def prompts(self) -> Sequence[object] | None: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def valid(self) -> Tensor: ...
    @property
    def num_sampled(self) -> Tensor: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def kl(self) -> Tensor: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice[None, int, None], /) -> Completions: ...


def rollout_html(rollout: Completions) -> Html:
    """Size and means of a rollout, and its first completions: prompt, tokens, score, return and log-ratio.

    The tooltip of a token has r_t, log pi, log pi_ref and, where it was computed, V(s_t).
    """
    first = rollout[:FEW]
    rewards, mask = first.rewards.tolist(), first.mask.tolist()
    scale = largest([r for row, kept in zip(rewards, mask, strict=True) for r, k in zip(row, kept, strict=True) if k])
    shown = [_completion(first, row, scale) for row in range(len(first))]
    more = len(rollout) - len(shown)
    return block_html(
        _summary(rollout),
        legend("reward r_t, KL included", scale),
        *shown,
        *([f"… {more:,} more completions"] if more else []),
    )


def _summary(rollout: Completions) -> str:
    valid = rollout.valid
    parts = [f"{len(rollout):,} completions, {int(rollout.num_sampled):,} tokens"]
    if skipped := int((~valid).sum()):
        parts.append(f"{skipped:,} skipped")
    if bool(valid.any()):
        means = {"score": rollout.scores, "log-ratio": rollout.kl, "return": rollout.rewards.sum(dim=1)}
        found = {name: float(values[valid].double().mean()) for name, values in means.items()}
        parts += [f"mean {name} {number_text(mean)}" for name, mean in found.items() if not math.isnan(mean)]
    return ", ".join(parts)


def _completion(rollout: Completions, row: int, scale: float) -> Html:
    """One completion; `rollout` is small."""
    text = None if rollout.prompts is None else rollout.prompts[row]
    prompt = Html() if text is None else Html(f"<b>prompt</b> {text_html(text)}")
    if not bool(rollout.mask[row].any()):
        return Html(f"{prompt} <i>skipped: its reward failed</i>")
    mask = rollout.mask[row]
    ids = rollout.tokens[row][mask].tolist()
    names = [f"<id {i}>" for i in ids] if rollout.tokenizer is None else rollout.tokenizer.convert_ids_to_tokens(ids)
    columns = {"r_t": rollout.rewards, "log pi": rollout.log_probs, "log pi_ref": rollout.ref_log_probs}
    if rollout.values is not None:
        columns["V"] = rollout.values
    details = {name: values[row][mask].tolist() for name, values in columns.items()}
    numbers = {"score": rollout.scores[row], "return": rollout.rewards[row].sum(), "log-ratio": rollout.kl[row]}
    numbers = {name: value for name, value in numbers.items() if not value.isnan()}  # nan where there is no reference
    found = ", ".join(f"{name} {number_text(float(value))}" for name, value in numbers.items())
    tokens = tokens_html(list(map(str, names)), details["r_t"], details, scale=scale)
    ended = "" if bool(rollout.stopped[row]) else ", no EOS"
    return Html(f"{prompt}<div>{tokens}</div><small>{text_html(found + ended)}</small>")
