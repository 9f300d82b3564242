"""Every completion of a toy, once, as a batch: expectations become weighted sums without sampling noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy import TransformerPolicy
from textenv import exact
from textenv.exact import Tree, masked_log_softmax


@dataclass(frozen=True)
class Enumeration:
    """All N completions of a toy under a policy. Tensors are float64, in the [N, T] form of `agents.functional`.

    Attributes:
        evaluation: the exact evaluation of the policy.
        states, actions: s_t (a row of the tree) and a_t, int64 [N, T]; 0 where the mask is False.
        mask: bool [N, T], the tokens of the completions.
        prompt: int64 [N].
        probability: p(x) pi(y|x), [N]; sums to 1.
        rewards: r_t, KL included, [N, T]; without it for completions of probability 0.
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
        """The completions of the tree on which the policy was evaluated."""
        tree = evaluation.tree
        states, actions = tree.paths()
        mask = states >= 0
        states, actions = np.maximum(states, 0), np.maximum(actions, 0)
        probability = np.exp(tree.completion_log_probs(evaluation.log_probs)) / len(tree.mdp.prompts.texts)
        log_probs, ref_log_probs = (
            np.where(mask, x[states, actions], 0.0) for x in (evaluation.log_probs, tree.ref_log_probs)
        )
        kl = np.where(probability[:, None] > 0, log_probs - ref_log_probs, 0.0)
        rewards = np.where(mask, tree.rewards[states, actions], 0.0) - tree.mdp.kl_coef * kl
        arrays = (states, actions, mask, tree.prompt[states[:, 0]], probability, rewards)
        return cls(evaluation, *map(torch.as_tensor, arrays))

    @property
    def tree(self) -> Tree:
        """The enumerated tree."""
        return self.evaluation.tree

    def look_up(self, table: object) -> Tensor:
        """Looks up a table [S] (states) or [S, V] (states, actions) along the completions: [N, T]; 0 off the mask."""
        values = torch.as_tensor(table)
        entries = values[self.states] if values.ndim == 1 else values[self.states, self.actions]
        return torch.where(self.mask, entries, 0.0)

    @property
    def edges(self) -> Tensor:
        """The index of each (s_t, a_t) in a flattened table [S, V], [N, T]."""
        return self.states * self.tree.mdp.vocab_size + self.actions

    def conditional_mean(self, group: Tensor, x: Tensor) -> Tensor:
        """E[x_t | group], [N, T]; `group` is `states` or `edges`."""
        weight, index = self.token_weights().flatten(), group.flatten()
        mass, total = torch.zeros(2, self.tree.child.size, dtype=torch.float64)
        mass.scatter_add_(0, index, weight)
        total.scatter_add_(0, index, weight * x.flatten())
        return torch.where(self.mask, (total / mass.clamp(min=1e-300))[group], 0.0)

    def sequences(self) -> tuple[Tensor, Tensor]:
        """`input_ids` and `attention_mask` [N, W + T] of prompts and completions."""
        prompts = self.tree.mdp.prompts
        ids = torch.cat([torch.as_tensor(prompts.input_ids)[self.prompt], self.actions], dim=1)
        attention = torch.cat([torch.as_tensor(prompts.attention_mask)[self.prompt], self.mask.to(torch.int8)], dim=1)
        return ids, attention

    def learned_values(self, policy: TransformerPolicy) -> Tensor:
        """V(s_t) by the policy's value head, [N, T]."""
        with torch.no_grad():
            values = policy.values(*self.sequences(), self.mask.shape[1]).double()
        return torch.where(self.mask, values, 0.0)

    def token_weights(self) -> Tensor:
        """The probability of the completion at each of its tokens, [N, T]; sums over tokens are over the occupancy."""
        return self.probability[:, None] * self.mask


def random_log_probs(tree: Tree, rng: np.random.Generator, distance: float | None = None) -> NDArray[np.float64]:
    """log pi(a|s), [S, V], of a random tabular policy: logits log pi_ref + distance N(0, 1), or N(0, 1) for None."""
    noise = rng.normal(size=tree.child.shape)
    logits = noise if distance is None else tree.ref_log_probs + distance * noise
    return masked_log_softmax(logits, tree.child != -2)
