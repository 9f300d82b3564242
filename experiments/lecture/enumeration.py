"""Every answer of a toy, once, as a batch: expectations become weighted sums, and carry no sampling noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import ActorCritic
from agents.policy import TransformerPolicy
from textenv import exact
from textenv.exact import Tree, masked_log_softmax


@dataclass(frozen=True)
class Enumeration:
    """All N answers of a toy under a policy. Tensors are float64, in the [N, T] form that agents/returns.py takes.

    Attributes:
        evaluation: the policy, exactly.
        states, actions: s_t (a row of the tree) and a_t, int64 [N, T]; 0 where the mask is False.
        mask: bool [N, T], the tokens that are written.
        prompt: int64 [N].
        probability: p(x) pi(y|x), [N]; sums to 1.
        rewards: r_t, the KL included, [N, T].
    """

    evaluation: exact.Evaluation
    states: Tensor
    actions: Tensor
    mask: Tensor
    prompt: Tensor
    probability: Tensor
    rewards: Tensor

    @classmethod
    def of(cls, evaluation: exact.Evaluation) -> Enumeration:
        """The answers of the tree that the policy was evaluated on."""
        tree = evaluation.tree
        states, actions = tree.paths()
        mask = states >= 0
        states, actions = np.maximum(states, 0), np.maximum(actions, 0)
        probability = np.exp(tree.completion_log_probs(evaluation.log_probs)) / len(tree.mdp.prompts.texts)
        own, reference = (np.where(mask, x[states, actions], 0.0) for x in (evaluation.log_probs, tree.ref_log_probs))
        rewards = np.where(mask, tree.rewards[states, actions], 0.0) - tree.mdp.kl_coef * (own - reference)
        arrays = (states, actions, mask, tree.prompt[states[:, 0]], probability, rewards)
        return cls(evaluation, *map(torch.as_tensor, arrays))

    @property
    def tree(self) -> Tree:
        """The enumeration."""
        return self.evaluation.tree

    def look_up(self, table: Any) -> Tensor:
        """A table over states [S] or over states and actions [S, V], along the answers: [N, T]; 0 off the mask."""
        values = torch.as_tensor(table)
        found = values[self.states] if values.ndim == 1 else values[self.states, self.actions]
        return torch.where(self.mask, found, 0.0)

    @property
    def edges(self) -> Tensor:
        """A number for each (s_t, a_t), [N, T]: its place in a table [S, V] laid flat."""
        return self.states * self.tree.mdp.vocab_size + self.actions

    def conditional_mean(self, group: Tensor, x: Tensor) -> Tensor:
        """E[x_t | group], [N, T]; `group` is `states` or `edges`."""
        weight, index = self.visit_weights().flatten(), group.flatten()
        mass, total = torch.zeros(2, self.tree.child.size, dtype=torch.float64)
        mass.scatter_add_(0, index, weight)
        total.scatter_add_(0, index, weight * x.flatten())
        return torch.where(self.mask, (total / mass.clamp(min=1e-300))[group], 0.0)

    def texts(self) -> tuple[Tensor, Tensor]:
        """`input_ids` and `attention_mask` [N, W + T] of the finished texts."""
        prompts = self.tree.mdp.prompts
        ids = torch.cat([torch.as_tensor(prompts.input_ids)[self.prompt], self.actions], dim=1)
        attention = torch.cat([torch.as_tensor(prompts.attention_mask)[self.prompt], self.mask.to(torch.int8)], dim=1)
        return ids, attention

    def learned_values(self, policy: TransformerPolicy) -> Tensor:
        """V(s_t) as the policy's value head says, [N, T]."""
        with torch.no_grad():
            values = policy.values(*self.texts(), self.mask.shape[1]).double()
        return torch.where(self.mask, values, 0.0)

    def visit_weights(self) -> Tensor:
        """The probability of each answer on each of its tokens, [N, T]: sums over tokens are sums over occupancy."""
        return self.probability[:, None] * self.mask


def started_policy(env: Any, total_timesteps: int = 3000) -> TransformerPolicy:
    """A transformer that has left the reference and not reached the optimum: a little of ActorCritic."""
    policy = TransformerPolicy.for_env(env)
    return ActorCritic(policy, env, learning_rate=1e-3, seed=0).learn(total_timesteps).policy


def on_the_way(env: Any, share: float) -> exact.Evaluation:
    """The policy whose logits lie this share of the way from the reference's to the optimum's, exactly."""
    solution = exact.solve(env)
    logits = (1 - share) * solution.tree.ref_log_probs + share * solution.action_log_probs
    return exact.evaluate_log_probs(solution.tree, masked_log_softmax(logits, solution.tree.child != -2))


def random_log_probs(tree: Tree, rng: np.random.Generator, distance: float | None = None) -> NDArray[np.float64]:
    """log pi(a|s), [S, V], of a random tabular policy: logits log pi_ref + distance N(0, 1); None: logits N(0, 1)."""
    noise = rng.normal(size=tree.child.shape)
    logits = noise if distance is None else tree.ref_log_probs + distance * noise
    return masked_log_softmax(logits, tree.child != -2)
