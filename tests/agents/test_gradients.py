"""Every agent's expected gradient is the gradient of J, by enumeration: see tests/helpers/gradients.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic
from agents.functional import clipped_surrogate_loss, value_loss
from agents.sampling import Rollout, collect, new_generator
from tests.helpers.gradients import (
    BROKEN,
    EXACT,
    TASKS,
    Case,
    all_completions,
    along,
    error,
    exact_gradient,
    flat,
    frozen,
    objective,
    step_gradient,
)
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make, random_reference, words
from textenv import exact


def test_the_enumeration_is_complete(case: Case) -> None:
    """The probabilities of the completions sum to one per prompt, and their expected return is J."""
    prompts = len(case.env.unwrapped.prompts)
    assert float(case.probability.sum()) == pytest.approx(prompts, abs=1e-5)
    returns = case.rollout.rewards.double().sum(dim=1)
    j = float((case.probability * returns).sum()) / prompts
    assert j == pytest.approx(objective(case.env, case.policy).item(), abs=1e-5)
    assert j == pytest.approx(exact.evaluate(case.env, case.policy).objective, abs=1e-5)


def test_the_two_exact_gradients_agree(case: Case) -> None:
    """`exact.policy_gradient` is the gradient of J by autograd."""
    found = exact.policy_gradient(case.env, case.policy)
    ours = flat(found[f"model.{name}"] for name, _ in case.policy.model.named_parameters())
    assert error(ours, case.gradient) < EXACT


# -- REINFORCE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_reinforce_has_the_gradient_of_j(case: Case, credit: str) -> None:
    """Without a baseline, from single completions."""
    agent = frozen(REINFORCE, case.policy, case.env, credit=credit, baseline=None)
    assert error(case.expected(agent, case.singles()), case.gradient) < EXACT


@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_leave_one_out_changes_no_expectation(case: Case, credit: str) -> None:
    """Over all pairs of completions of the same prompt the baseline cancels."""
    agent = frozen(REINFORCE, case.policy, case.env, credit=credit, baseline="leave_one_out", num_generations=2)
    assert error(case.expected(agent, case.pairs(same_prompt=True)), case.gradient) < EXACT


@pytest.mark.parametrize("same_prompt", [False, True])
@pytest.mark.parametrize("credit", ["sequence", "reward_to_go"])
def test_the_mean_baseline_shrinks_the_gradient_by_one_nth(
    cases: dict[str, Case], credit: str, same_prompt: bool
) -> None:
    """A return that is part of its own baseline gives the factor 1 - 1/N, a half for two, see `batch_mean`."""
    case = cases["full"]
    agent = frozen(REINFORCE, case.policy, case.env, credit=credit, baseline="mean", num_generations=2)
    found = case.expected(agent, case.pairs(same_prompt))
    assert error(found, case.gradient / 2) < EXACT
    assert error(found, case.gradient) > BROKEN


@pytest.mark.parametrize(("baseline", "factor"), [(None, 1.0), ("leave_one_out", 1.0), ("mean", 0.5)])
def test_exact_q_values_give_the_exact_gradient(case: Case, baseline: str | None, factor: float) -> None:
    """credit="q" with the true Q in place of its estimate."""
    known = exact.evaluate(case.env, case.policy)
    q_values = along(known.tree, case.rollout, lambda state, action: known.q_values[state, action])

    class Oracle(REINFORCE):
        def q_values(self, rollout: Rollout) -> Tensor:
            return rollout.values  # this test passes Q as `values`

    agent = frozen(Oracle, case.policy, case.env, credit="q", baseline=baseline, num_generations=2)
    batches = case.pairs(same_prompt=True) if baseline else case.singles()
    if baseline is None:
        agent.num_generations = 1
    found = case.expected(agent, batches, replace(case.rollout, values=q_values))
    assert error(found, factor * case.gradient) < EXACT


def test_q_values_converge_to_q(case: Case) -> None:
    """Means over many continuations are within Hoeffding's bound of the exact Q (false failure: 1e-9)."""
    copies, known = 400, exact.evaluate(case.env, case.policy)
    agent = frozen(REINFORCE, case.policy, case.env, credit="q", num_continuations=copies, num_generations=2)
    expected = along(known.tree, case.rollout, lambda state, action: known.q_values[state, action])
    found, mask = agent.q_values(case.rollout), case.rollout.mask

    to_go = case.rollout.rewards.flip(1).cumsum(dim=1).flip(1)[mask]  # every return to go of any state
    spread = float(to_go.max() - to_go.min())
    bound = spread * np.sqrt(np.log(2 * int(mask.sum()) / 1e-9) / (2 * copies))
    difference = (found - expected).abs()[mask]
    assert difference.max() < bound

    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    assert torch.allclose(found[last], case.rollout.rewards[last])  # no reward follows the last token
    value = along(known.tree, case.rollout, lambda state, action: known.values[state])
    assert (found - value).abs()[mask].max() > 2 * bound  # control: the bound separates Q from V


def test_the_gradient_of_a_batch_is_the_mean_over_its_completions(case: Case) -> None:
    """Completions of all lengths have equal weight."""
    agent = frozen(REINFORCE, case.policy, case.env, baseline=None)
    rows = torch.arange(len(case.rollout))
    each = [step_gradient(agent, case.rollout[rows[i : i + 1]]) for i in rows.tolist()]
    assert error(step_gradient(agent, case.rollout), torch.stack(each).mean(dim=0)) < EXACT


# -- ActorCritic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_actor_critic_with_the_true_v_has_the_gradient_of_j(case: Case, gae_lambda: float) -> None:
    """With V exact, every lambda is unbiased."""
    known = exact.evaluate(case.env, case.policy)
    values = along(known.tree, case.rollout, lambda state, action: known.values[state])
    agent = frozen(ActorCritic, case.policy, case.env, gae_lambda=gae_lambda, vf_coef=0.0)
    found = case.expected(agent, case.singles(), replace(case.rollout, values=values))
    assert error(found, case.gradient) < EXACT


def test_only_lambda_one_is_unbiased_with_a_wrong_v(case: Case) -> None:
    """With an arbitrary V, lambda = 1 stays unbiased; lambda < 1 (the control) is biased."""
    found = {
        gae_lambda: case.expected(
            frozen(ActorCritic, case.policy, case.env, gae_lambda=gae_lambda, vf_coef=0.0), case.singles()
        )
        for gae_lambda in (0.0, 0.95, 1.0)
    }
    assert error(found[1.0], case.gradient) < EXACT
    assert error(found[0.0], case.gradient) > error(found[0.95], case.gradient) > BROKEN


def test_the_value_loss_is_minimal_at_the_true_v(case: Case) -> None:
    """Its expected gradient by V(s) is zero at the exact V of every state, and not zero at a shifted V."""
    known = exact.evaluate(case.env, case.policy)
    state = along(known.tree, case.rollout, lambda state, action: state).long()
    returns = case.rollout.rewards.flip(1).cumsum(dim=1).flip(1).double()
    for shift, is_minimum in ((0.0, True), (0.1, False)):
        v = (torch.as_tensor(known.values) + shift).requires_grad_()
        each = [
            float(p) * value_loss(v[state[i : i + 1]], returns[i : i + 1], case.rollout.mask[i : i + 1])
            for i, p in enumerate(case.probability)
        ]
        torch.stack(each).sum().backward()
        assert v.grad is not None
        assert (v.grad.abs().max() < 1e-5) == is_minimum


# -- PPO ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_range", [0.2, None])
@pytest.mark.parametrize("separate_critic", [False, True])
@pytest.mark.parametrize("task", ["full", "sparse"])
def test_ppos_first_gradient_is_actor_critics(task: str, separate_critic: bool, clip_range: float | None) -> None:
    """On the same completions, with value loss and configured dropout: ratio 1, and the same gradient."""
    env = make(TASKS[task])
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    policy = random_policy(env, 3, separate_critic=separate_critic, **dropout)
    assert policy.train() is policy
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    ppo = frozen(PPO, policy, env, n_epochs=1, clip_range=clip_range)
    actor_critic = frozen(ActorCritic, policy, env)
    assert ppo.vf_coef == actor_critic.vf_coef > 0
    metrics = ppo.train(rollout)
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["val/ratio_error_max"] < 1e-5
    assert metrics["policy/clipfrac_avg"] == 0.0
    actor_critic.train(rollout)
    expected = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    assert error(flat(found.values()), flat(expected[name] for name in found)) < EXACT


@pytest.mark.parametrize("clip_range", [0.2, None])
def test_ppo_with_the_true_v_has_the_gradient_of_j(case: Case, clip_range: float | None) -> None:
    """The first minibatch's expected gradient is that of J."""
    known = exact.evaluate(case.env, case.policy)
    values = along(known.tree, case.rollout, lambda state, action: known.values[state])
    agent = frozen(PPO, case.policy, case.env, n_epochs=1, clip_range=clip_range, vf_coef=0.0)
    found = case.expected(agent, case.singles(), replace(case.rollout, values=values))
    assert error(found, case.gradient) < EXACT


def test_importance_weights_correct_for_another_behaviour_policy() -> None:
    """One token, no KL: an old policy's completions give the new one's gradient; with a tight clip not (control)."""
    env = make(words(4, reference=random_reference(4, 1, sparse=False), max_new_tokens=1, kl_coef=0.0))
    old, new = random_policy(env, 1), random_policy(env, 2)
    rollout = all_completions(env, old)
    expected = exact_gradient(env, new)
    probability = rollout.log_probs.double().exp()[:, 0] / len(env.unwrapped.prompts)
    found = {}
    for clip_range in (None, 0.05):
        agent = frozen(PPO, new, env, n_epochs=1, clip_range=clip_range, vf_coef=0.0)
        gradients = [step_gradient(agent, rollout[i : i + 1]) for i in range(len(rollout))]
        found[clip_range] = sum(float(p) * g for p, g in zip(probability, gradients, strict=True))
    assert error(found[None], expected) < EXACT
    assert error(found[0.05], expected) > BROKEN


# -- RLOO and GRPO -----------------------------------------------------------------------------------------------------


def test_rloo_has_the_gradient_of_j(case: Case) -> None:
    """Over all pairs of completions of a prompt; on each pair it is the gradient of REINFORCE with the same credit."""
    agent = frozen(RLOO, case.policy, case.env, num_generations=2)
    assert error(case.expected(agent, case.pairs(same_prompt=True)), case.gradient) < EXACT
    same = frozen(REINFORCE, case.policy, case.env, credit="sequence", baseline="leave_one_out", num_generations=2)
    rows = torch.tensor(case.pairs(same_prompt=True)[1][1])
    assert error(step_gradient(agent, case.rollout[rows]), step_gradient(same, case.rollout[rows])) < EXACT


@pytest.mark.parametrize("task", ["full", "sparse"])
def test_a_weight_per_completion_corrects_for_another_behaviour_policy(task: str) -> None:
    """RLOO without a clip is unbiased on an old policy's completions of several tokens; a weight per token is not."""
    env = make(TASKS[task] | {"kl_coef": 0.0})
    old, new = random_policy(env, 1), random_policy(env, 2)
    case = Case(task)
    case.rollout = all_completions(env, old)
    case.probability = case.rollout.log_probs.double().sum(dim=1).exp()
    case.env, expected = env, exact_gradient(env, new)
    pairs = case.pairs(same_prompt=True)
    settings = {"num_generations": 2, "n_epochs": 1}
    assert error(case.expected(frozen(RLOO, new, env, clip_range=None, **settings), pairs), expected) < EXACT
    assert error(case.expected(frozen(RLOO, new, env, clip_range=0.2, **settings), pairs), expected) > BROKEN
    per_token = frozen(GRPO, new, env, clip_range=None, clip_range_high=None, scale_rewards=False, **settings)
    assert error(2 * case.expected(per_token, pairs), expected) > BROKEN


def test_grpo_without_the_scale_has_the_gradient_of_j_but_for_one_kth(case: Case) -> None:
    """The mean includes the return itself: factor 1 - 1/K, a half for two. With the scale it is another objective."""
    pairs = case.pairs(same_prompt=True)
    settings = {"num_generations": 2, "n_epochs": 1}
    plain = case.expected(frozen(GRPO, case.policy, case.env, scale_rewards=False, **settings), pairs)
    assert error(plain, case.gradient / 2) < EXACT
    scaled = case.expected(frozen(GRPO, case.policy, case.env, **settings), pairs)
    best = (scaled @ case.gradient) / (scaled @ scaled)
    assert error(best * scaled, case.gradient) > BROKEN


def test_the_higher_clip_keeps_the_gradient_of_good_tokens_longer() -> None:
    """Between 1 + eps and 1 + eps_high a token with A > 0 has a gradient; below 1 - eps one with A < 0 has none."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for rho, advantage, high, has_gradient in [
        (1.25, 1.0, None, False),
        (1.25, 1.0, 0.28, True),
        (1.29, 1.0, 0.28, False),
        (0.79, -1.0, 0.28, False),
        (0.79, 1.0, 0.28, True),
        (1.29, -1.0, 0.28, True),
    ]:
        log_probs = torch.tensor([[rho]]).log().requires_grad_()
        weight = torch.tensor([[advantage]])
        loss = clipped_surrogate_loss(log_probs, torch.zeros(1, 1), weight, mask, 0.2, high)
        (gradient,) = torch.autograd.grad(loss, log_probs)
        assert (gradient != 0).item() is has_gradient
