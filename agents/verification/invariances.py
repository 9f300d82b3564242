"""What must change nothing in a loss on text: padding, company, the prompt's length, the scale of old log-probs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.verification.findings import Finding
from agents.verification.loss import BatchGradient, TokenGradient
from agents.verification.samples import Sample

EXTRA_COLUMNS = 2
SHIFT = -0.5  # added to all log-probabilities of the sampled tokens


def invariances(
    gradient: BatchGradient, sample: Sample, rows: Tensor, num_generations: int, is_eos: Tensor
) -> list[Finding]:
    """Compares the gradients of some batches before and after changes that must not matter.

    Args:
        gradient: of the loss.
        sample: all N completions, of the policy itself.
        rows: the batches, int64 [M, B].
        num_generations: K, completions per group.
        is_eos: bool [V], the tokens that end a completion.
    """
    batches = sample.batches(rows)
    end, other = (int(torch.nonzero(is_eos == each)[0, 0]) if (is_eos == each).any() else 0 for each in (True, False))

    def compare(name: str, change: Callable[[Sample], Sample], cause: str) -> Finding:
        try:
            return Finding(name, relative_change(gradient, batches, change), cause)
        except Exception as error:  # of the user's loss
            return Finding(name, math.inf, f"the loss fails: {error}")

    return [
        compare(
            "padding",
            padded,
            "something is computed over all columns, padding included: usually whitening, a mean or a sum of log_probs "
            "without the mask",
        ),
        compare(
            "pad == eos",
            lambda each: filled(each, end, other),
            "the loss reads the tokens of the padding: usually a mask that is computed from pad_token_id",
        ),
        compare(
            "longer prompt",
            lambda each: longer_prompt(each, other),
            "the loss reads the prompt: usually a sum or a length over the whole attention_mask",
        ),
        micro_batches(gradient, sample, rows, num_generations),
        Finding("ratio 1 at first", float("nan"), "since the loss reads all_log_probs")
        if "all_log_probs" in gradient.extra
        else compare(
            "ratio 1 at first",
            shifted,
            "the loss depends on more than the ratio to the behaviour policy: usually old log-probs without the "
            "temperature that sampled, or probabilities in place of log-probs",
        ),
    ]


def relative_change(gradient: BatchGradient, batches: list[Sample], change: Callable[[Sample], Sample]) -> float:
    """The largest change of the gradient of a batch, relative to the largest gradient."""
    changes, sizes = [], []
    for each in batches:
        before, after = flat(gradient(each)), flat(gradient(change(each)))
        changes.append(float((pad(before, (0, 0, 0, after.shape[1] - before.shape[1])) - after).norm()))
        sizes.append(float(before.norm()))
    return max(changes) / max(*sizes, 1e-300)


def flat(gradient: TokenGradient) -> Tensor:
    """Both parts of a gradient together, [B, T, 1 or 1 + V]."""
    parts = [gradient.log_probs[..., None], *([] if gradient.all_log_probs is None else [gradient.all_log_probs])]
    return torch.cat(parts, dim=2)


def micro_batches(gradient: BatchGradient, sample: Sample, rows: Tensor, num_generations: int) -> Finding:
    """Compares the gradients of two batches together with those in micro-batches of one group."""
    name, pairs = "micro-batches", torch.cat([rows, rows.roll(1, dims=0)], dim=1)
    changes, sizes = [], []
    for each in sample.batches(pairs):
        try:
            whole = gradient(each).by_token(each)
        except Exception as error:  # a loss of the user's may be written for the number of completions of one batch
            return Finding(name, float("nan"), f"since the loss fails on {len(each.rollout)} completions: {error}")
        parts = gradient.in_micro_batches(each, num_generations).by_token(each)
        changes.append(float((whole - parts).norm()))
        sizes.append(float(whole.norm()))
    return Finding(
        name,
        max(changes) / max(*sizes, 1e-300),
        "the loss of two groups is not the mean of their losses: usually a divisor, a mean or a standard deviation "
        "over the whole batch",
    )


def padded(sample: Sample) -> Sample:
    """Two more columns of padding on the right, where log pi is not 0, as a model's is not."""
    old, by = sample.rollout, (0, EXTRA_COLUMNS)

    def widen(x: Tensor) -> Tensor:
        return pad(x, by)

    rollout = replace(
        old,
        input_ids=widen(old.input_ids),
        attention_mask=widen(old.attention_mask),
        mask=widen(old.mask),
        log_probs=widen(old.log_probs),
        ref_log_probs=widen(old.ref_log_probs),
        rewards=widen(old.rewards),
        values=None if old.values is None else widen(old.values),
        action_mask=None if old.action_mask is None else pad(old.action_mask, (0, 0, *by), value=True),
    )
    uniform = -float(torch.tensor(sample.all_log_probs.shape[2]).log())
    return Sample(
        rollout,
        states=widen(sample.states),
        actions=widen(sample.actions),
        log_probs=pad(sample.log_probs, by, value=uniform),
        all_log_probs=pad(sample.all_log_probs, (0, 0, *by), value=uniform),
        ref_all_log_probs=pad(sample.ref_all_log_probs, (0, 0, *by), value=uniform),
        values=widen(sample.values),
        q_values=widen(sample.q_values),
        values_without_kl=widen(sample.values_without_kl),
        q_values_without_kl=widen(sample.q_values_without_kl),
    )


def filled(sample: Sample, end: int, other: int) -> Sample:
    """Another token in the padding after completions: EOS, or where that is already there, another one."""
    rollout = sample.rollout
    padding = rollout.attention_mask == 0
    padding[:, : -rollout.num_tokens] = False
    token = torch.where(rollout.input_ids == end, other, end)
    return sample.change(input_ids=torch.where(padding, token, rollout.input_ids))


def longer_prompt(sample: Sample, token: int) -> Sample:
    """Two more tokens at the beginning of each prompt, after its left padding."""
    rollout, width = sample.rollout, sample.rollout.input_ids.shape[1] - sample.rollout.num_tokens
    attention = rollout.attention_mask
    ones = torch.ones_like(attention[:, :1]).expand(-1, EXTRA_COLUMNS)
    attention = torch.cat([attention[:, :width], ones, attention[:, width:]], dim=1)
    return sample.change(input_ids=pad(rollout.input_ids, (EXTRA_COLUMNS, 0), value=token), attention_mask=attention)


def shifted(sample: Sample) -> Sample:
    """All log-probabilities of the sampled tokens changed by the same number: no ratio changes."""
    by = SHIFT * sample.rollout.mask
    changed = {name: getattr(sample.rollout, name) + by for name in ("log_probs", "ref_log_probs")}
    return replace(sample.change(**changed), log_probs=sample.log_probs + by)
