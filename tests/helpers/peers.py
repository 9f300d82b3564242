"""A batch for the losses of other libraries: completions of the reference, log-probabilities of another policy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.sampling import Rollout
from agents.verification.cases import default_cases, table_case
from agents.verification.loss import rollout_of
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
    completions = table_case("reference", tree, tree.ref_log_probs).completions
    values = completions.look_up(case.evaluation.values)[rows]
    log_probs = completions.look_up(case.log_probs)[rows].requires_grad_()
    return Batch(
        rollout_of(completions)[torch.tensor(rows)], log_probs, case.log_probs[completions.states[rows]], values
    )
