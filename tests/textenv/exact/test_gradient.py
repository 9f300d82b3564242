"""The exact policy gradient against autograd through J, written here as a sum over completions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.brute_force import all_completions
from tests.helpers.tasks import (
    SHAPING,
    make,
    random_reference,
    tasks,
    words,
)
from textenv import TextMDP, exact
from textenv.tree import enumerate_tree


class TablePolicy(torch.nn.Module):
    """A logit for every state and token, float64; the observation identifies the state."""

    def __init__(self, tree: exact.Tree, seed: int) -> None:
        super().__init__()
        self.rows = {row.tobytes(): i for i, row in enumerate(np.hstack(tree.observations(slice(None))))}
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.nn.Parameter(torch.randn(tree.child.shape, generator=generator, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(2))

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> torch.Tensor:
        """Logits [B, V]."""
        return self.logits[[self.rows[row.tobytes()] for row in np.hstack([input_ids, attention_mask])]]


def differentiable_objective(env: Any, policy: TablePolicy, beta: float) -> torch.Tensor:
    """J(pi) = mean over prompts, sum over completions of pi(y|x) (r - beta log(pi / pi_ref)), with gradients."""
    total = torch.zeros((), dtype=torch.float64)
    for (prompt, tokens), steps in all_completions(env).items():
        log_prob = torch.zeros((), dtype=torch.float64)
        for t, token in enumerate(tokens):
            observation, info = env.reset(options={"prompt": prompt, "completion": list(tokens[:t])})
            logits = policy.next_token_logits(observation["input_ids"][None], observation["attention_mask"][None])[0]
            allowed = torch.as_tensor(info["action_mask"] == 1)
            log_prob = log_prob + logits[token] - logits[allowed].logsumexp(0)
        # the unbound environment's rewards sum to score + shaping + beta log pi_ref
        total = total + log_prob.exp() * (sum(reward for reward, _ in steps) - beta * log_prob)
    return total / len(env.unwrapped.prompts)


@settings(max_examples=8, deadline=None)
@given(arguments=tasks(max_vocab=4, max_tokens=3), seed=st.integers(0, 99))
def test_policy_gradient_equals_autograd(arguments: dict[str, Any], seed: int) -> None:
    """The exact gradient, from occupancy and advantages, equals autograd through J as a sum over completions."""
    mdp = TextMDP(**arguments)
    policy = TablePolicy(enumerate_tree(mdp), seed)
    beta = arguments["kl_coef"]
    objective = differentiable_objective(make(arguments), policy, beta)
    objective.backward()
    assert exact.evaluate(mdp, policy).objective == pytest.approx(objective.item(), abs=1e-6)
    gradient = exact.policy_gradient(mdp, policy)
    torch.testing.assert_close(gradient["logits"], policy.logits.grad, rtol=0, atol=1e-6)
    assert gradient.keys() == {"logits", "unused"} and not gradient["unused"].any()


def test_the_gradient_test_detects_another_gradient() -> None:
    """Negative control: the gradient without the KL, and that of another policy, are not the gradient of J."""
    arguments = words(3, prompts=["a", "b b"], max_new_tokens=2, reference=random_reference(3, 0, sparse=False))
    mdp = TextMDP(**arguments)
    policy = TablePolicy(enumerate_tree(mdp), 0)
    differentiable_objective(make(arguments), policy, 0.5).backward()
    without_kl = exact.policy_gradient(TextMDP(**arguments | {"kl_coef": 0.0}), policy)
    other = exact.policy_gradient(mdp, TablePolicy(enumerate_tree(mdp), 1))
    for wrong in (without_kl["logits"], other["logits"]):
        assert (wrong - policy.logits.grad).abs().max() > 1e-3


def test_small_steps_along_the_gradient_lead_to_the_optimum() -> None:
    """Gradient ascent on the exact gradient reaches J*: gradient and solution agree."""
    arguments = words(3, prompts=["a"], max_new_tokens=2, kl_coef=1.0, shaping=SHAPING[1:2])
    tree = enumerate_tree(TextMDP(**arguments))
    policy, solution = TablePolicy(tree, 0), exact.solve(TextMDP(**arguments))
    before = exact.evaluate(tree, policy).objective
    for _ in range(300):
        policy.logits.data += exact.policy_gradient(tree, policy)["logits"]
    assert before < solution.objective - 0.05
    assert exact.evaluate(tree, policy).objective == pytest.approx(solution.objective, abs=1e-4)
