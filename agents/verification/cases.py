"""The policies at which a loss is measured: what its gradients are taken by, and what they should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.verification.enumeration import Enumeration, random_log_probs
from textenv import exact
from textenv.exact import Evaluation, Tree

# Distance from the reference: logits log pi_ref + distance N(0, 1); or logits N(0, 1), independent of it.
DISTANCES: dict[str, float | None] = {"near": 0.1, "between": 0.5, "far": 1.0, "independent": None}


@dataclass(frozen=True)
class Case:
    """A policy pi on a toy. Tensors are float64.

    Attributes:
        name: of the policy.
        completions: all completions with their probabilities under pi.
        log_probs: log pi(a|s), [S, V].
        by_parameters: from c(s, a), [M, S, V], to sum c(s, a) grad log pi(a|s) by the P parameters of pi, [M, P].
    """

    name: str
    completions: Enumeration
    log_probs: Tensor
    by_parameters: Callable[[Tensor], Tensor]

    @property
    def evaluation(self) -> Evaluation:
        """The exact quantities of pi."""
        return self.completions.evaluation

    @property
    def pi(self) -> Tensor:
        """pi(y|x) of each completion, [N]."""
        return self.completions.probability * len(self.completions.tree.mdp.prompts.texts)

    @cached_property
    def values_without_kl(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """V [S] and Q [S, V] of the rewards without their KL."""
        probs = np.exp(self.log_probs.numpy())
        return self.completions.tree.backward(lambda level, q_values: (probs[level] * q_values).sum(axis=1))

    @cached_property
    def exact_gradient(self) -> Tensor:
        """grad J = sum_s d(s) sum_a pi(a|s) A(s, a) grad log pi(a|s), [P]."""
        known = self.evaluation
        probs = np.exp(known.log_probs)
        weights = known.occupancy[:, None] * probs * np.where(probs > 0, known.advantages, 0.0)
        return self.by_parameters(torch.as_tensor(weights)[None])[0]


def table_case(name: str, tree: Tree, log_probs: NDArray[np.float64]) -> Case:
    """A table of logits, one for each state and action: its gradients owe nothing to a network.

    grad log pi(a|s) by the logits of s is the unit vector of a, less pi(.|s).
    """
    completions, probs = Enumeration.of(exact.evaluate_log_probs(tree, log_probs)), torch.as_tensor(np.exp(log_probs))

    def by_logits(weights: Tensor) -> Tensor:
        weights = torch.where(probs > 0, weights, 0.0)
        return (weights - weights.sum(dim=-1, keepdim=True) * probs).flatten(start_dim=1)

    return Case(name, completions, torch.as_tensor(log_probs), by_logits)


def policy_case(name: str, tree: Tree, policy: TransformerPolicy) -> Case:
    """A `TransformerPolicy`, whose parameters are the weights of its model that are trained."""
    completions, allowed = Enumeration.of(exact.evaluate(tree, policy)), torch.as_tensor(tree.child != -2)
    logits = policy.next_token_logits(*tree.observations(slice(None))).masked_fill(~allowed, -torch.inf)
    log_probs = logits.log_softmax(dim=1).masked_fill(~allowed, 0.0)
    parameters = [each for each in policy.model.parameters() if each.requires_grad]
    rows = []  # grad log pi(a|s) of each allowed action
    for entry in log_probs[allowed]:
        gradients = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]).double())
    jacobian = torch.stack(rows)

    def by_weights(weights: Tensor) -> Tensor:
        return weights[:, allowed] @ jacobian

    return Case(name, completions, torch.as_tensor(completions.evaluation.log_probs), by_weights)


def default_cases(tree: Tree, seed: int = 0) -> list[Case]:
    """Tables at set distances from the reference."""
    rng = np.random.default_rng(seed)
    return [table_case(name, tree, random_log_probs(tree, rng, distance)) for name, distance in DISTANCES.items()]


def optimum_case(tree: Tree) -> Case:
    """pi*, as a table."""
    return table_case("optimum", tree, exact.solve(tree).action_log_probs)
