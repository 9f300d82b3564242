"""Completions as a loss gets them: a rollout, with the log-probabilities of the policy that is measured."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from agents.sampling import Rollout

if TYPE_CHECKING:
    from agents.verification.cases import Case


@dataclass
class EnumeratedRollout(Rollout):
    """A rollout whose rows know their place in the batch, also where an agent has selected some of them.

    Attributes:
        place: int64 [B], the row of each completion in the batch.
    """

    place: Tensor | None = None


@dataclass(frozen=True)
class Sample:
    """B completions of a behaviour policy, and the policy pi that is measured. Tensors are float64.

    Attributes:
        rollout: the completions.
        states, actions: s_t (a row of the tree) and a_t, int64 [B, T]; 0 where the mask is False.
        log_probs: log pi(a_t|s_t), [B, T]; 0 where the mask is False, like the values.
        all_log_probs, ref_all_log_probs: log pi(.|s_t) and log pi_ref(.|s_t), [B, T, V].
        values, q_values: V(s_t) and Q(s_t, a_t) of pi, exact, [B, T].
        values_without_kl, q_values_without_kl: the same of the rewards without their KL.
    """

    rollout: EnumeratedRollout
    states: Tensor
    actions: Tensor
    log_probs: Tensor
    all_log_probs: Tensor
    ref_all_log_probs: Tensor
    values: Tensor
    q_values: Tensor
    values_without_kl: Tensor
    q_values_without_kl: Tensor

    def batches(self, rows: Tensor) -> list[Sample]:
        """The batches of `rows`, int64 [M, B], one gather for all."""
        count, size = rows.shape
        rollout = self.rollout[rows.flatten()]
        place = torch.arange(size).expand(count, size)
        columns = [_unbind(getattr(rollout, f.name), count) for f in fields(rollout) if f.name != "place"]
        rollouts = [EnumeratedRollout(*values) for values in zip(*columns, place, strict=True)]
        tensors = [_unbind(getattr(self, f.name)[rows.flatten()], count) for f in fields(self)[1:]]
        return [Sample(*values) for values in zip(rollouts, *tensors, strict=True)]

    def change(self, **fields_of_rollout: object) -> Sample:
        """The sample with another content of some fields of its rollout."""
        return replace(self, rollout=replace(self.rollout, **fields_of_rollout))  # type: ignore[arg-type]


def _unbind(x: object, count: int) -> list[object]:
    """Splits [M B, ...] into M times [B, ...]; what is no array is repeated."""
    if isinstance(x, Tensor):
        return list(x.view(count, -1, *x.shape[1:]).unbind())
    if isinstance(x, np.ndarray):
        return list(x.reshape(count, -1))
    return [x] * count


def sample_of(case: Case, behaviour: Case, sampled: Tensor | None = None, num_generations: int = 1) -> Sample:
    """All N completions of a toy as completions of a behaviour policy.

    Args:
        case: pi, the policy that is measured.
        behaviour: the behaviour policy.
        sampled: log pi(a|s) as the sampler returned it, [S, V]; by default the behaviour policy's. The KL in the
            rewards is computed from it.
        num_generations: completions per group.
    """
    completions = behaviour.completions
    tree, mask = completions.tree, completions.mask
    log_probs = completions.look_up(behaviour.log_probs if sampled is None else sampled)
    ref_log_probs = completions.look_up(tree.ref_log_probs)
    rewards = completions.look_up(tree.rewards) - tree.mdp.kl_coef * (log_probs - ref_log_probs)
    ids, attention = completions.sequences()
    last = mask.sum(dim=1, keepdim=True) - 1
    texts = [tree.mdp.decode(row[kept].tolist()) for row, kept in zip(completions.actions, mask, strict=True)]
    allowed = torch.as_tensor(tree.child != -2)[completions.states] | ~mask[:, :, None]
    rollout = EnumeratedRollout(
        prompt=completions.prompt,
        input_ids=ids,
        attention_mask=attention,
        mask=mask,
        log_probs=log_probs,
        ref_log_probs=ref_log_probs,
        rewards=rewards,
        scores=completions.look_up(tree.scores).sum(dim=1),
        stopped=torch.as_tensor(tree.mdp.is_eos)[completions.actions.gather(1, last)[:, 0]],
        values=None,
        action_mask=None if tree.mdp.full_support else allowed,
        prompts=tree.mdp.prompt_texts[completions.prompt.numpy()],
        completions=np.array(texts, dtype=object),
        num_generations=num_generations,
        place=torch.arange(len(mask)),
    )
    values_without_kl, q_values_without_kl = case.values_without_kl
    return Sample(
        rollout,
        completions.states,
        completions.actions,
        completions.look_up(case.log_probs),
        case.log_probs[completions.states],
        torch.as_tensor(tree.ref_log_probs)[completions.states],
        completions.look_up(case.evaluation.values),
        completions.look_up(case.evaluation.q_values),
        completions.look_up(values_without_kl),
        completions.look_up(q_values_without_kl),
    )
