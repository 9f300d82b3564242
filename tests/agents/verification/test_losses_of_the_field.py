"""What the losses of the field climb, by `verify` on the agents' own updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic
from agents.functional import exact_kl, mean_over_completions, policy_gradient_loss, reward_to_go, with_later_states
from agents.preparation import prepare
from agents.sampling import Rollout
from agents.verification import Measured, OtherSampler, Report, agent_loss, older, verify
from agents.verification.agent_gradient import AgentGradient
from agents.verification.cases import default_cases
from agents.verification.samples import sample_of
from tests.helpers.gradients import TASKS
from tests.helpers.losses import small
from tests.helpers.tasks import make
from textenv import exact, get_mdp

FREE: dict[str, Any] = {"clip_range": None, "clip_range_high": None, "scale_rewards": False}  # no clip, no scale
NO_CAP: dict[str, Any] = {"sampler_correction": "truncate", "sampler_cap": 1e30}


def off_policy(report: Report) -> list[Measured]:
    """On completions of an older policy."""
    return list(report.off_policy["an older policy"].by_policy.values())


def on_older(loss: Any, env: Any, num_generations: int = 1) -> Report:
    """The report with no other sampler than an older policy."""
    return verify(loss, env, num_generations=num_generations, samplers={"an older policy": OtherSampler(older)})


def worst(report: Report) -> float:
    """The largest bias on completions of an older policy."""
    return max(each.bias for each in off_policy(report))


# -- losses of GRPO ----------------------------------------------------------------------------------------------------


def test_what_the_losses_of_grpo_climb() -> None:
    """The gradient of J but for 1 - 1/K with dr_grpo; with a divisor by lengths another direction."""
    found = {
        loss: verify(agent_loss(GRPO, loss=loss, scale_rewards=False), small(num_prompts=1), num_generations=2)
        for loss in ("dr_grpo", "grpo", "dapo", "gspo", "cispo", "sapo")
    }
    right = found.pop("dr_grpo")
    assert right.cosine > 1 - 1e-12 and right.bias == pytest.approx(0.5)
    assert all(each.cosine < 0.997 for each in found.values())
    on_policy = {loss: {name: x.expected for name, x in each.by_policy.items()} for loss, each in found.items()}
    for one, other in [("grpo", "gspo"), ("grpo", "sapo"), ("dapo", "cispo")]:  # rho = 1: the divisor is all
        for name, gradient in on_policy[one].items():
            torch.testing.assert_close(on_policy[other][name], gradient, rtol=1e-9, atol=1e-12)
    assert abs(found["grpo"].cosine - found["dapo"].cosine) > 1e-3


# -- the KL in the loss ------------------------------------------------------------------------------------------------


def gradients(**settings: Any) -> list[Tensor]:
    """The gradient of REINFORCE's update on each completion of each policy."""
    env = small()
    loss = agent_loss(REINFORCE, baseline=None, **settings)
    found = []
    for case in default_cases(exact.enumerate_tree(env)):
        gradient, sample = AgentGradient(loss, get_mdp(env), num_generations=1, num_prompts=1), sample_of(case, case)
        rows = torch.arange(len(sample.rollout))[:, None]
        found += [gradient(each).by_token(each) for each in sample.batches(rows)]
    return found


def test_k3_times_rho_is_k2_sample_by_sample() -> None:
    """On policy. Control: k3 differs from it on a sample."""
    k2, k3_rho, k3 = (gradients(kl_in="loss", kl_loss=each) for each in ("k2", "k3_rho", "k3"))
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(k2, k3_rho, strict=True))
    assert not all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(k2, k3, strict=True))


def test_what_the_kl_in_the_loss_climbs() -> None:
    """None is unbiased; the exact KL has the expectation of k2, and k1 is no KL at all."""
    settings: dict[str, Any] = {"baseline": None, "kl_in": "loss"}
    found = {
        name: verify(agent_loss(REINFORCE, kl_loss=name, **settings), small())
        for name in ("k1", "k2", "k3", "k3_rho", "exact")
    }
    assert verify(agent_loss(REINFORCE, baseline=None), small()).unbiased  # control: the KL in the reward
    assert not any(each.unbiased for each in found.values())
    without = verify(agent_loss(REINFORCE, baseline=None), small(kl_coef=0.0)).by_policy
    for name, measured in found["k2"].by_policy.items():
        exact_kl_in_loss, no_kl = found["exact"].by_policy[name], found["k1"].by_policy[name]
        torch.testing.assert_close(exact_kl_in_loss.expected, measured.expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(no_kl.expected, without[name].exact, rtol=1e-9, atol=1e-12)
    assert found["k3"].cosine < found["k2"].cosine - 0.01


def scores_and_exact_kl(later_states: bool) -> Any:
    """REINFORCE by the score, and the exact KL of each state in the loss."""

    def loss(rollout: Rollout, log_probs: Tensor, all_log_probs: Tensor, ref_all_log_probs: Tensor) -> Tensor:
        kl = exact_kl(all_log_probs, ref_all_log_probs, rollout.mask)
        if later_states:
            kl = with_later_states(kl, log_probs, rollout.mask)
        rewards = rollout.rewards + 0.2 * (rollout.log_probs - rollout.ref_log_probs)
        weights = reward_to_go(rewards, rollout.mask)
        return policy_gradient_loss(log_probs, weights, rollout.mask) + 0.2 * mean_over_completions(kl, rollout.mask)

    return loss


def test_the_exact_kl_with_its_score_function_term_is_unbiased() -> None:
    """On the default toy, and where the reference masks tokens. Control: without the term it is biased."""
    sparse = make(TASKS["sparse"] | {"kl_coef": 0.2})
    for env in (None, sparse):
        assert verify(scores_and_exact_kl(later_states=True), env).unbiased
    assert verify(scores_and_exact_kl(later_states=False)).bias > 0.01


def test_agents_with_v_have_it_without_the_kl() -> None:
    """With beta = 0 `kl_in` makes no difference; with beta the exact V is that of the score, whatever lambda is."""
    for kind, settings in ((ActorCritic, {}), (PPO, {"n_epochs": 1}), (REINFORCE, {"credit": "q", "baseline": None})):
        free = [verify(agent_loss(kind, kl_in=each, **settings), small(kl_coef=0.0)) for each in ("reward", "loss")]  # type: ignore[type-abstract]
        assert free[0].unbiased and free[1].unbiased
    one, other = (
        verify(agent_loss(ActorCritic, kl_in="loss", kl_loss="exact", gae_lambda=each), small()).by_policy
        for each in (0.0, 1.0)
    )
    for name, measured in one.items():
        torch.testing.assert_close(other[name].expected, measured.expected, rtol=1e-9, atol=1e-12)


# -- completions of another policy -------------------------------------------------------------------------------------


def test_importance_weights_by_prefix_correct_a_critics_advantages() -> None:
    """PPO with the exact V, one step, no clip. Control: by token it is biased where there are two tokens."""
    settings: dict[str, Any] = {"gae_lambda": 0.0, "clip_range": None}
    env = small(kl_coef=0.0)
    found = {each: worst(on_older(agent_loss(PPO, importance=each, **settings), env)) for each in ("token", "prefix")}
    assert found["prefix"] < 1e-9 and found["token"] > 0.01
    assert worst(on_older(agent_loss(PPO, importance="prefix", **settings | {"gae_lambda": 1.0}), env)) > 0.01


def test_importance_weights_by_sequence_correct_returns() -> None:
    """GRPO's advantage is a return: J's gradient but for a half. Controls: by token and by prefix it is not."""
    env = small(kl_coef=0.0, num_prompts=1)
    found = {
        each: off_policy(on_older(agent_loss(GRPO, importance=each, **FREE), env, num_generations=2))
        for each in ("token", "prefix", "sequence")
    }
    assert all(x.cosine > 1 - 1e-12 and x.bias < 0.5 + 1e-9 for x in found["sequence"])
    assert all(min(x.cosine for x in found[each]) < 0.999 for each in ("token", "prefix"))


@pytest.mark.parametrize(
    ("kind", "size", "settings"),
    [
        (REINFORCE, 1, {"baseline": None}),
        (RLOO, 2, {}),
        (ActorCritic, 1, {"gae_lambda": 1.0, "critic": "zero"}),
        (ActorCritic, 1, {"gae_lambda": 0.0, "sampler_level": "prefix"}),
        (PPO, 1, {"gae_lambda": 0.0, "sampler_level": "prefix"}),
        (GRPO, 2, {"scale_rewards": False}),
    ],
)
def test_a_correction_without_a_cap_is_unbiased_for_another_sampler(
    kind: Any, size: int, settings: dict[str, Any]
) -> None:
    """The KL of the rewards is the trainer's too. Controls: no correction, weights by token, a cap that binds."""
    factor = 0.5 if kind is GRPO else 1.0

    def bias(**more: Any) -> float:
        own = {name: value for name, value in settings.items() if more or name != "sampler_level"}
        report = on_older(agent_loss(kind, **(own | more)), small(num_prompts=1), size)
        return max(float((x.expected / factor - x.exact).norm() / x.exact.norm()) for x in off_policy(report))

    assert bias(**NO_CAP) < 1e-9
    wrong: list[dict[str, Any]] = [
        {},
        NO_CAP | {"sampler_cap": 1.1},
        {"sampler_correction": "mask", "sampler_cap": 1.1},
    ]
    if size == 1:
        wrong.append(NO_CAP | {"sampler_level": "token"})
    else:
        wrong = wrong[:1]  # groups take longer
    assert min(bias(**each) for each in wrong) > 0.01


@pytest.mark.parametrize("kl_loss", ["k2", "exact"])
def test_a_correction_weighs_the_kl_in_the_loss_too(kl_loss: str) -> None:
    """On completions of an older policy the expectation is that on the policy's own. Control: without it, it is not."""
    settings = {"baseline": None, "kl_in": "loss", "kl_loss": kl_loss}
    corrected, plain = (
        on_older(agent_loss(REINFORCE, **settings, **more), small(num_prompts=1)) for more in (NO_CAP, {})
    )
    for name, measured in plain.by_policy.items():
        found = corrected.off_policy["an older policy"].by_policy[name].expected
        torch.testing.assert_close(found, measured.expected, rtol=1e-9, atol=1e-12)
        uncorrected = plain.off_policy["an older policy"].by_policy[name].expected
        assert not torch.allclose(uncorrected, measured.expected, rtol=1e-3)


def test_a_correction_changes_nothing_where_the_sampler_is_right() -> None:
    """Weights of 1, the same rewards and log-probabilities."""
    env = small()
    loss = agent_loss(REINFORCE, baseline=None, sampler_correction="mask")
    for case in default_cases(exact.enumerate_tree(env)):
        gradient, sample = AgentGradient(loss, get_mdp(env), num_generations=1, num_prompts=1), sample_of(case, case)
        gradient(sample)
        prepared, metrics = prepare(gradient.agent, sample.rollout)
        assert prepared.weights is not None and torch.equal(prepared.weights, prepared.mask.double())
        assert torch.equal(prepared.rewards, sample.rollout.rewards)
        assert metrics == {"sampler/weight_avg": 1.0, "sampler/capped_ratio": 0.0}
