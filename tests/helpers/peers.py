"""A batch for the losses of other libraries: completions of the reference, log-probabilities of another policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.sampling import Rollout
from agents.verification.cases import default_cases, table_case
from agents.verification.samples import sample_of
from textenv import EnvLike, exact


@dataclass(frozen=True)
class Batch:
    """What `verify` hands to a loss."""

    rollout: Rollout
    log_probs: Tensor
    all_log_probs: Tensor
    values: Tensor


def off_policy_batch(env: EnvLike, rows: list[int]) -> Batch:
    """These completions of the toy, with the policy "far"."""
    tree = exact.enumerate_tree(env)
    case = next(case for case in default_cases(tree) if case.name == "far")
    reference = table_case("reference", tree, tree.ref_log_probs)
    sample = sample_of(case, reference, num_generations=2).batches(torch.tensor([rows]))[0]
    return Batch(sample.rollout, sample.log_probs.requires_grad_(), sample.all_log_probs, sample.values)
