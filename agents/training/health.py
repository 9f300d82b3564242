"""Watches the metrics of a run, and warns once of each condition in `agents.training.conditions` that it finds."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from agents.errors import TrainingWarning
from agents.functional import widen
from agents.policy import TransformerPolicy
from agents.sampling import Rollout
from agents.training.conditions import CONDITIONS, EVALUATION_CONDITIONS, Condition
from agents.training.ranks import rank
from agents.training.reduction import Metrics
from agents.training.signs import Context
from agents.training.statistics import expected_ends

START = 3  # updates that are the start of a run
MOVE_UPDATES = 10  # updates after which the weights must have changed
PROBE_SIZE = 100_000  # weights that are compared


class HealthMonitor:
    """Looks at each row of metrics and warns, with `TrainingWarning`, once for each condition.

    Rank 0 warns. All ranks have the same metrics, so they find the same conditions.

    Attributes:
        context: what the conditions need besides the last rows.
        warned: the names of the conditions that were found.
        updates, evaluations: the last rows of metrics.
        probe: weights, and copies of them that were made earlier; None before the copies, empty after the comparison.
        updates_since_probe: updates from the one after which the copies were made, which counts.
        ends: at most one value, that of `statistics.expected_ends`, which takes many calls of the reference. It is
            computed when it is first needed.
    """

    def __init__(self) -> None:
        self.context = Context()
        self.warned: set[str] = set()
        self.updates: deque[Metrics] = deque(maxlen=max(each.patience for each in CONDITIONS))
        self.evaluations: deque[Metrics] = deque(maxlen=max(each.patience for each in EVALUATION_CONDITIONS))
        self.probe: list[tuple[Tensor, Tensor]] | None = None
        self.updates_since_probe = 0
        self.ends: list[float | None] = []

    def observe(self, agent: Any, metrics: Metrics, rollout: Rollout | None = None) -> Metrics:
        """Returns what is to be added to the metrics of an update: `warnings/NAME` = 1 where a condition is new.

        Every rank calls it.

        Args:
            agent: has the settings n_episodes and max_grad_norm, policy, mdp (or None) and num_updates.
            metrics: the metrics of the update.
            rollout: its completions, where it has whole ones.
        """
        self.context.n_episodes, self.context.max_grad_norm = agent.n_episodes, agent.max_grad_norm
        self.context.precision = precision(agent.policy)
        self.context.regularized = agent.mdp is not None and agent.mdp.kl_coef > 0
        self.context.expected_ends = lambda: self._expected_ends(agent, rollout)
        added = self._weight_change(agent)
        row = metrics | added
        if len(self.context.start) < START and getattr(agent, "kl_target", None) is None:
            self.context.start.append(row)
        self.updates.append(row)
        found = self._warn(CONDITIONS, self.updates, stacklevel=5)  # the caller of `learn`, through `update`
        self.context.expected_ends = Context().expected_ends  # releases the rollout
        return added | found

    def observe_evaluation(self, measured: Metrics, reference: float | None, optimum: float | None = None) -> Metrics:
        """Returns what is to be added to the metrics of an evaluation: `warnings/NAME` = 1 where a condition is new.

        Args:
            measured: `objective`, the policy's J, and `objective_stderr` where it is estimated.
            reference: the reference's J; None where it could not be measured, and nothing is compared.
            optimum: the optimum's J, None where it is not known.
        """
        if reference is None:
            return {}
        row = {f"eval/{name}": value for name, value in measured.items()} | {"reference": reference}
        self.evaluations.append(row if optimum is None else row | {"optimum": optimum})
        return self._warn(EVALUATION_CONDITIONS, self.evaluations, stacklevel=3)

    def _expected_ends(self, agent: Any, rollout: Rollout | None) -> float | None:
        if not self.ends:
            self.ends.append(expected_ends(agent.mdp, rollout))
        return self.ends[0]

    def _warn(self, conditions: tuple[Condition, ...], rows: deque[Metrics], stacklevel: int) -> Metrics:
        found: Metrics = {}
        for each in conditions:
            last = list(rows)[-each.patience :]
            if (
                each.name in self.warned
                or len(last) < each.patience
                or not each.found(last, each.threshold, self.context)
            ):
                continue
            self.warned.add(each.name)
            found[f"warnings/{each.name}"] = 1.0
            if rank() == 0:
                message = f"{each.name}: {each.describe(last, self.context)}"
                warnings.warn(message, TrainingWarning, stacklevel=stacklevel)
        return found

    def _weight_change(self, agent: Any) -> Metrics:
        """`policy/weight_change` of some weights, once, `MOVE_UPDATES` after the first update that trains them."""
        if agent.num_updates <= getattr(agent, "value_warmup", 0) or self.updates_since_probe > MOVE_UPDATES:
            return {}
        if self.probe is None:
            self.probe = [(weight, weight.detach().clone()) for weight in probe_weights(agent)]
        self.updates_since_probe += 1
        if not self.probe or self.updates_since_probe <= MOVE_UPDATES:
            return {}
        change, size = (
            torch.stack([widen(norm) for norm in norms]).norm().item()
            for norms in zip(
                *((((weight.detach() - before).norm()), before.norm()) for weight, before in self.probe), strict=True
            )
        )
        self.probe = []
        return {"policy/weight_change": change / max(size, 1e-12)}


def probe_weights(agent: Any) -> list[Tensor]:
    """Some of the weights that an optimizer steps, of the policy's model alone; none where they are sharded."""
    model = [parameter for parameter in agent.policy.model.parameters() if parameter.requires_grad]
    optimization = getattr(agent, "optimization", None)  # agents of other libraries step the weights themselves
    stepped = model if optimization is None else optimization.master_weights.for_parameters(model)
    found: list[Tensor] = []
    for weight in sorted(stepped, key=lambda each: each.numel()):
        if isinstance(weight, DTensor):
            return []
        if found and sum(each.numel() for each in found) + weight.numel() > PROBE_SIZE:
            break
        found.append(weight)
    return found


def precision(policy: TransformerPolicy) -> float:
    """The relative rounding error of the policy's arithmetic."""
    if policy.model.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return torch.finfo(torch.bfloat16).eps
    return torch.finfo(policy.model.dtype).eps
