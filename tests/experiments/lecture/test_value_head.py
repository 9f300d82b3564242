"""Claim 4: the value head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.functional import reward_to_go, value_loss
from agents.verification import Enumeration
from experiments.lecture import gamma_lambda, value_head
from tests.helpers.lecture import SEEDS, all_completions, toy
from tests.helpers.policies import random_policy
from textenv import exact


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_the_exact_v_minimizes_the_mse_on_rewards_to_go(seed: int) -> None:
    """The expected gradient of `value_loss` is zero at V_pi; E (V - G)^2 - E (V - V_pi)^2 does not depend on V."""
    completions = all_completions(seed)
    to_go, weight = reward_to_go(completions.rewards, completions.mask), completions.token_weights()
    exact_values = torch.as_tensor(completions.evaluation.values)

    def slope(values: Tensor) -> Tensor:
        values = values.clone().requires_grad_(True)
        losses = [
            p * value_loss(completions.look_up(values)[i : i + 1], to_go[i : i + 1], completions.mask[i : i + 1])
            for i, p in enumerate(completions.probability)
        ]
        return torch.autograd.grad(torch.stack(losses).sum(), values)[0]

    other = torch.as_tensor(np.random.default_rng(seed).normal(size=len(exact_values)))
    assert slope(exact_values).abs().max() < 1e-9 < 1e-3 < slope(exact_values + other).abs().max()
    rest = [
        float((weight * (completions.look_up(v) - to_go) ** 2).sum() / weight.sum())
        - value_head.squared_error(completions, completions.look_up(v))
        for v in (exact_values, exact_values + other)
    ]
    assert rest[0] == pytest.approx(rest[1]) and rest[0] > 0


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, size=st.floats(0.1, 2.0))
def test_no_critic_explains_more_than_the_exact_v(seed: int, size: float) -> None:
    """At every token the exact V has the highest explained variance, which is below 1."""
    completions = all_completions(seed)
    best = torch.as_tensor(completions.evaluation.values)
    worse = best + size * torch.as_tensor(np.random.default_rng(seed).normal(size=len(best)))
    ceiling = value_head.per_token(completions, completions.look_up(best))
    below = value_head.per_token(completions, completions.look_up(worse))
    assert all(
        low["explained_variance"] <= top["explained_variance"] + 1e-9 for low, top in zip(below, ceiling, strict=True)
    )
    assert any(
        low["explained_variance"] < top["explained_variance"] - 1e-6 for low, top in zip(below, ceiling, strict=True)
    )
    assert all(top["explained_variance"] < 1 and top["mse"] == 0 for top in ceiling)
    shifted = value_head.per_token(
        completions, completions.look_up(best + 3.0)
    )  # explained variance ignores a constant
    assert [row["explained_variance"] for row in shifted] == pytest.approx([t["explained_variance"] for t in ceiling])
    assert (
        value_head.pooled(completions, completions.look_up(worse))
        < value_head.pooled(completions, completions.look_up(best))
        < 1
    )


@pytest.mark.parametrize("separate", [False, True])
def test_a_critic_learns_and_the_policy_does_not_change(separate: bool) -> None:
    """Most of the error disappears; only the critic changes. The linear head stays above its least squares error."""
    env = toy(num_prompts=2)
    policy = value_head.with_new_critic(random_policy(env).float(), separate)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    completions = Enumeration.of(exact.evaluate(env, policy))
    start = value_head.squared_error(completions, completions.learned_values(policy))
    assert [step for step, _ in value_head.fit_values(env, policy, 80)] == list(range(81))
    learned = value_head.squared_error(completions, completions.learned_values(policy))
    least = value_head.squared_error(completions, value_head.least_squares(completions, policy))
    assert learned < start / 4  # control: V = E r_t, the wrong target, is as bad as none
    wrong = gamma_lambda.errors(completions, torch.zeros_like(completions.rewards), 1.0, 0.0)
    assert wrong["rmse"] > 0 and (separate or learned > least)
    changed = {name.split(".")[0] for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed == ({"value_head", "critic"} if separate else {"value_head"})


def test_the_critics_match_their_names() -> None:
    """Only "own transformer" has a separate critic."""
    policy = random_policy(toy())
    critics = {name: value_head.with_new_critic(policy, own).critic for name, own in value_head.CRITICS.items()}
    assert critics["linear head"] is None and critics["own transformer"] is not None
