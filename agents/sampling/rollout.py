"""`Rollout`: completions with their log-probabilities, rewards and scores, as tensors, and as a notebook shows them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textenv.html import Html, block_html, largest, legend, number_text, text_html, tokens_html
from textenv.lm import to_device

SHOWN = 5  # completions in a notebook


@dataclass
class Rollout:
    """B completions; those of a group are contiguous. [B, T] tensors have token t in column t.

    A completion is skipped where its reward failed and the MDP has `on_reward_error="skip"`. It keeps its row, with a
    mask that is all False and scores that are nan; agents learn nothing from it.

    Attributes:
        prompt: int64 [B], index into the environment's prompts.
        input_ids, attention_mask: [B, W + T], prompts with left padding, completions with right padding; in external
            environments (`agents.sampling.external`) [B, T, L + 1], one observation per token.
        mask: bool [B, T], the tokens sampled in this rollout, EOS included; all False in a row that is skipped.
        log_probs: log pi(a_t|s_t) of the behaviour policy, [B, T]. 0 where the mask is False, like the next two and V.
        ref_log_probs: log pi_ref(a_t|s_t), [B, T]; nan where the environment has no reference.
        rewards: r_t, the sum of all its terms, [B, T].
        scores: score(x, y), [B]; nan where skipped.
        stopped: bool [B], whether the completion ended with EOS, rather than at the length limit.
        values: V(s_t), [B, T], or None if they were not requested.
        action_mask: bool [B, T, V], the allowed tokens, or None where nothing is masked.
        prompts, completions: as text, object arrays [B]; None in a rollout `without_strings`.
        gold_scores: the gold reward's scores, [B], nan where skipped; None where the MDP has no gold reward.
        lengths: int64 [B], the number of tokens sampled, also where skipped; None means `mask.sum(dim=1)`.
        extra: what reward functions have logged of each completion (`log_extra`), object arrays [B] by name; or None.
        prefix: int64 [B], on the host: completions with the same number have the same prompt tokens, which one pass
            computes once (prefix sharing); None: those that share a prompt are found by its tokens.
        num_generations: completions per group, as sampled.
        weights: what an update multiplies the advantages by, [B, T], see agents/preparation.py; None is 1.
        tokenizer: the task's, which names the tokens in a notebook; None: they are shown by their ids.
    """

    prompt: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    log_probs: Tensor
    ref_log_probs: Tensor
    rewards: Tensor
    scores: Tensor
    stopped: Tensor
    values: Tensor | None
    action_mask: Tensor | None
    prompts: Any
    completions: Any
    gold_scores: Tensor | None = None
    lengths: Tensor | None = None
    extra: dict[str, NDArray[np.object_]] | None = None
    prefix: NDArray[np.int64] | None = None
    num_generations: int = 1
    weights: Tensor | None = None
    tokenizer: Any = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def num_tokens(self) -> int:
        """T, the number of columns of the completions."""
        return self.mask.shape[1]

    @property
    def valid(self) -> Tensor:
        """bool [B], False for completions that are skipped."""
        return self.mask.any(dim=1)

    @property
    def num_sampled(self) -> Tensor:
        """The number of tokens sampled, those of skipped completions included."""
        return self.mask.sum() if self.lengths is None else self.lengths.sum()

    @property
    def tokens(self) -> Tensor:
        """a_t, int64 [B, T]; meaningless where the mask is False."""
        return self.input_ids[..., -1] if self.input_ids.ndim == 3 else self.input_ids[:, -self.num_tokens :]

    @property
    def kl(self) -> Tensor:
        """log(pi(y|x) / pi_ref(y|x)), [B]: its mean estimates the KL over whole completions."""
        return (self.log_probs - self.ref_log_probs).sum(dim=1)

    def _repr_html_(self) -> Html:
        """Size and means, and the first completions: prompt, tokens, score, return and log-ratio.

        A token has the colour of its reward. Its tooltip has r_t, log pi, log pi_ref and, if it was computed, V(s_t).
        """
        first = self[:SHOWN]
        scale = largest(first.rewards[first.mask].tolist())
        more = len(self) - len(first)
        return block_html(
            _summary(self),
            legend("reward r_t, KL included", scale),
            *(_completion(first, row, scale) for row in range(len(first))),
            *([f"… {more:,} more completions"] if more else []),
        )

    def weighted(self, advantages: Tensor) -> Tensor:
        """Advantages, [B, T], times the weights of the tokens."""
        return advantages if self.weights is None else self.weights * advantages

    def __getitem__(self, rows: slice | Tensor) -> Rollout:
        """A rollout of some of the completions: `rows` is a slice or an int64 tensor, better on the host."""
        on_device = rows if isinstance(rows, slice) else to_device(rows, self.mask.device)

        def select(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[on_device]
            if isinstance(value, dict):
                return {name: select(values) for name, values in value.items()}
            if isinstance(value, np.ndarray):  # strings and numbers on the host
                return value[rows if isinstance(rows, slice) else rows.cpu().numpy()]
            return value

        return replace(self, **{f.name: select(getattr(self, f.name)) for f in fields(self)})

    def skip(self, rows: Tensor) -> Rollout:
        """The rollout in which these rows, bool [B], are skipped too: masks all False, zeros where those were True."""
        kept = ~rows[:, None]
        names = ("log_probs", "ref_log_probs", "rewards", "values")
        masked: dict[str, Any] = {
            name: torch.where(kept, x, 0.0) for name in names if (x := getattr(self, name)) is not None
        }
        return replace(self, mask=self.mask & kept, **masked)

    def scored(self) -> Rollout:
        """The rollout without the rows that are skipped."""
        return self[torch.nonzero(self.valid)[:, 0]]

    def without_strings(self) -> Rollout:
        """The rollout without its strings, as a loss uses it: selecting rows then needs no synchronisation."""
        return replace(self, prompts=None, completions=None, extra=None)


def _summary(rollout: Rollout) -> str:
    valid = rollout.valid
    parts = [f"{len(rollout):,} completions, {int(rollout.num_sampled):,} tokens"]
    if skipped := int((~valid).sum()):
        parts.append(f"{skipped:,} skipped")
    if bool(valid.any()):
        means = {"score": rollout.scores, "log-ratio": rollout.kl, "return": rollout.rewards.sum(dim=1)}
        found = {name: float(values[valid].cpu().double().mean()) for name, values in means.items()}
        parts += [f"mean {name} {number_text(mean)}" for name, mean in found.items() if not math.isnan(mean)]
    return ", ".join(parts)


def _completion(rollout: Rollout, row: int, scale: float) -> Html:
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
