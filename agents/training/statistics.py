"""Statistics of a batch that tell whether training can work: standard errors, groups without spread, noise."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from agents.functional import widen, widest_float
from agents.sampling import Rollout
from agents.training.ranks import all_reduce_sum
from agents.training.reduction import Metrics
from textenv import TextMDP

FEW = 16  # completions of each rank from which the ends under the reference are estimated
LEAST_REPEATS = 8  # repeated completions in a batch from which the noise of the score is estimated


def batch_statistics(rollout: Rollout, num_generations: int) -> Metrics:
    """Returns statistics over the completions of all ranks that have a score.

    `objective/kl_stderr`, `objective/rlhf_reward_stderr`: standard errors of two means over completions;
    `groups/equal_scores_ratio`: the share of groups whose scores are all equal; with one completion per prompt the
    completions of each rank are a group;
    `objective/score_noise`: the variance of the score among completions of a prompt with the same tokens, as a share of
    its variance in the batch. Left out where few completions are repeated, or all scores are equal.
    """
    scored = rollout.mask.any(dim=1)
    scores = widen(rollout.scores)
    size = num_generations if num_generations > 1 else len(rollout)
    sums = [
        *_moments(widen(rollout.kl), scored),
        *_moments(widen(rollout.rewards).sum(dim=1), scored),
        *_moments(scores, scored),
        *_equal_groups(scores.view(-1, size), scored.view(-1, size)),
        *_within(scores, scored, _identical(rollout)),
    ]
    total = all_reduce_sum(torch.stack(sums)).tolist()  # one device synchronisation
    count, kl, reward, score = total[0], _variance(*total[0:3]), _variance(*total[3:6]), _variance(*total[6:9])
    groups, equal, repeats, within = total[9:]
    found = {
        "objective/kl_stderr": math.sqrt(kl / count) if count else math.nan,
        "objective/rlhf_reward_stderr": math.sqrt(reward / count) if count else math.nan,
        "groups/equal_scores_ratio": equal / groups if groups else math.nan,
        "objective/score_noise": within / repeats / score if repeats >= LEAST_REPEATS and score > 0 else math.nan,
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _moments(x: Tensor, valid: Tensor) -> Iterable[Tensor]:
    """Number, sum and sum of squares of the valid entries."""
    kept = torch.where(valid, x, 0.0)
    return widen(valid.sum()), kept.sum(), (kept**2).sum()


def _variance(count: float, total: float, squares: float) -> float:
    """The variance of a sample from its moments."""
    return max(squares - total**2 / count, 0.0) / (count - 1) if count > 1 else math.nan


def _equal_groups(scores: Tensor, valid: Tensor) -> Iterable[Tensor]:
    """The number of groups with at least two scores, and of those whose scores are all equal."""
    comparable = valid.sum(dim=1) >= 2
    highest = torch.where(valid, scores, -torch.inf).amax(dim=1)
    lowest = torch.where(valid, scores, torch.inf).amin(dim=1)
    return widen(comparable.sum()), widen((comparable & (highest == lowest)).sum())


def _identical(rollout: Rollout) -> list[int]:
    """For each completion, the first row with the same prompt and tokens (itself where completions are no text).

    Texts do not tell: several sequences of tokens may have the same one, and rewards get the ids too.
    """
    sampled = torch.where(rollout.mask, rollout.tokens, -1)
    keys = torch.cat([rollout.prompt[:, None], sampled], dim=1).cpu().numpy()
    first: dict[bytes, int] = {}
    return [
        row if completion is None else first.setdefault(key.tobytes(), row)
        for row, (key, completion) in enumerate(zip(keys, rollout.completions, strict=True))
    ]


def _within(scores: Tensor, valid: Tensor, first: list[int]) -> Iterable[Tensor]:
    """Degrees of freedom, and sum of squares, of the scores around the mean of identical completions."""
    index = torch.tensor(first, device=scores.device)
    kept, zeros = torch.where(valid, scores, 0.0), torch.zeros_like(scores)
    number = zeros.scatter_add(0, index, widen(valid))
    means = zeros.scatter_add(0, index, kept) / number.clamp(min=1)
    residual = torch.where(valid, scores - means[index], 0.0)
    return (number - 1).clamp(min=0).sum(), (residual**2).sum()


def expected_ends(mdp: TextMDP | None, rollout: Rollout | None) -> float | None:
    """The mean over some completions of sum_t pi_ref(end|s_t): how often the reference would have ended them.

    They are the first ones of each rank: every rank calls it, and all get the same mean. None without an MDP or a
    rollout, and where the MDP has no end token.
    """
    if mdp is None or rollout is None or not mdp.is_eos.any():
        return None
    ids, attention = (x[:FEW].cpu().numpy() for x in (rollout.input_ids, rollout.attention_mask))
    sampled = rollout.mask[:FEW].cpu().numpy()
    width, total = ids.shape[1], 0.0
    for time in range(rollout.num_tokens):
        before = np.where(np.arange(width) < width - rollout.num_tokens + time, attention, 0)
        log_probs = np.asarray(mdp.reference.log_probs(np.where(before == 1, ids, 0), before))
        total += float(np.exp(log_probs[:, mdp.is_eos]).sum(axis=1)[sampled[:, time]].sum())
    device = rollout.mask.device
    sums = torch.tensor([total, len(ids)], dtype=widest_float(device), device=device)
    total, count = all_reduce_sum(sums).tolist()
    return float(total / count)
