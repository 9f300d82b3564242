"""Negative controls of test_gradients.py: each usual mistake changes the expected gradient by more than a percent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from agents import PPO, REINFORCE, ActorCritic
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from tests.helpers.gradients import BROKEN, EXACT, TASKS, Case, error, exact_gradient, frozen
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make


def no_end_token(case: Case, rollout: Rollout) -> Rollout:
    """The end token is masked out of loss and reward, as if it were padding; completions of one token keep theirs."""
    ends = torch.as_tensor(case.env.unwrapped.mdp.is_eos)[rollout.tokens] & (rollout.mask.sum(dim=1) > 1)[:, None]
    return replace(rollout, mask=rollout.mask & ~ends)


def no_kl(case: Case, rollout: Rollout) -> Rollout:
    """The rewards have no KL."""
    beta = case.env.unwrapped.mdp.kl_coef
    return replace(rollout, rewards=rollout.rewards + beta * (rollout.log_probs - rollout.ref_log_probs))


def other_temperature(case: Case, rollout: Rollout) -> Rollout:
    """The KL is that of another temperature than the sampling temperature."""
    hot = TransformerPolicy(case.policy.model, temperature=2.0)
    with torch.no_grad():
        log_probs = hot.evaluate_actions(
            rollout.input_ids, rollout.attention_mask, rollout.num_tokens, rollout.action_mask
        ).log_probs
    beta = case.env.unwrapped.mdp.kl_coef
    change = torch.where(rollout.mask, log_probs - rollout.log_probs, 0.0)
    return replace(rollout, rewards=rollout.rewards - beta * change)


def shifted_mask(case: Case, rollout: Rollout) -> Rollout:
    """The mask is shifted one column to the right."""
    return replace(rollout, mask=torch.nn.functional.pad(rollout.mask[:, :-1], (1, 0)))


def late_reward(case: Case, rollout: Rollout) -> Rollout:
    """Rewards are shifted one column to the right; the last one is lost."""
    return replace(rollout, rewards=torch.nn.functional.pad(rollout.rewards[:, :-1], (1, 0)))


def no_action_mask(case: Case, rollout: Rollout) -> Rollout:
    """The update ignores which tokens were allowed."""
    return replace(rollout, action_mask=None)


@pytest.mark.parametrize("kind", [REINFORCE, ActorCritic, PPO])
@pytest.mark.parametrize(
    "mistake",
    [no_end_token, no_kl, other_temperature, shifted_mask, late_reward, no_action_mask],
    ids=lambda f: f.__name__,
)
def test_a_mistake_is_detected(cases: dict[str, Case], mistake: Callable[[Case, Rollout], Rollout], kind: Any) -> None:
    """Each mistake changes the expected gradient by more than a percent."""
    case = cases["sparse" if mistake is no_action_mask else "full"]
    settings = {"baseline": None} if kind is REINFORCE else {"gae_lambda": 1.0, "vf_coef": 0.0}
    settings |= {"n_epochs": 1} if kind is PPO else {}
    agent = frozen(kind, case.policy, case.env, **settings)
    assert error(case.expected(agent, case.singles()), case.gradient) < EXACT
    assert error(case.expected(agent, case.singles(), mistake(case, case.rollout)), case.gradient) > BROKEN


def test_an_update_at_another_temperature_is_detected(cases: dict[str, Case]) -> None:
    """Sampled at temperature 1, differentiated at 2: the gradient is wrong."""
    case = cases["full"]
    hot = TransformerPolicy(case.policy.model, temperature=2.0)
    agent = frozen(REINFORCE, hot, case.env, baseline=None)
    assert error(case.expected(agent, case.singles()), case.gradient) > BROKEN


def test_temperature_is_part_of_the_policy() -> None:
    """With temperature 2 in sampling and update, the expected gradient is that of J at temperature 2."""
    case = Case("sparse", 5, temperature=2.0)
    cold = TransformerPolicy(case.policy.model)
    assert error(exact_gradient(case.env, cold), case.gradient) > BROKEN
    for agent in (
        frozen(REINFORCE, case.policy, case.env, baseline=None),
        frozen(ActorCritic, case.policy, case.env, gae_lambda=1.0, vf_coef=0.0),
        frozen(PPO, case.policy, case.env, gae_lambda=1.0, vf_coef=0.0, n_epochs=1),
    ):
        assert error(case.expected(agent, case.singles()), case.gradient) < EXACT


def test_dropout_in_the_update_is_detected() -> None:
    """With the modules in training mode the ratio is not 1."""
    env = make(TASKS["full"])
    policy = random_policy(env, 3, resid_pdrop=0.5)
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    torch.nn.Module.train(policy, True)
    with torch.random.fork_rng(devices=[]):
        assert frozen(PPO, policy, env, n_epochs=1).train(rollout)["val/ratio_error_max"] > BROKEN
