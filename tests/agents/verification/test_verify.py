"""`verify` against brute force; right losses hold, and each planted fault is found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.functional import policy_gradient_loss, reward_to_go
from agents.sampling import Rollout
from agents.verification import TooManyBatches, agent_loss, verify
from agents.verification.agent_gradient import AgentGradient
from agents.verification.cases import default_cases, policy_case
from agents.verification.entry import default_toy
from agents.verification.samples import sample_of
from tests.helpers.gradients import TASKS
from tests.helpers.losses import FAULTS, centred, relative, returns, small, to_go, weighted
from tests.helpers.policies import random_policy
from tests.helpers.tasks import make
from textenv import exact


def middle_counts_more(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Depends on the order in groups of 3, and not where they are reversed."""
    weights = torch.tensor([0.5, 2.0, 0.5], dtype=torch.float64) * returns(rollout)
    return weighted(log_probs, weights[:, None], rollout.mask)


def first_counts_more(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """A loss that depends on the order in the group: the other completion's return is the first one's baseline."""
    baseline = torch.stack([returns(rollout)[1], torch.zeros((), dtype=torch.float64)])
    return weighted(log_probs, (returns(rollout) - baseline)[:, None], rollout.mask)


@pytest.mark.parametrize(
    ("loss", "num_generations", "ordered"), [(to_go, 1, False), (relative, 2, False), (first_counts_more, 2, True)]
)
def test_the_numbers_are_those_of_brute_force(loss: Any, num_generations: int, ordered: bool) -> None:
    """Over every ordered group, by autograd through the logits; grad J by autograd through the sum over completions."""
    env = small()
    report = verify(loss, env, num_generations=num_generations)
    assert report.ordered == ordered
    for case in default_cases(exact.enumerate_tree(env)):
        rollout, completions = sample_of(case, case, num_generations=num_generations).rollout, case.completions
        logits = case.log_probs.clone().requires_grad_()

        def log_probs_of(rows: list[int], logits: Tensor = logits, completions: Any = completions) -> Tensor:
            table = logits.log_softmax(dim=1)
            return torch.where(completions.mask[rows], table[completions.states[rows], completions.actions[rows]], 0.0)

        log_pi = log_probs_of(list(range(len(rollout)))).sum(dim=1)
        gains = rollout.scores - 0.2 * (log_pi - rollout.ref_log_probs.sum(dim=1))
        (true,) = torch.autograd.grad((log_pi.exp() * gains).sum() / 2, logits)
        mean, second, total = torch.zeros_like(true), 0.0, 0.0
        for prompt in (0, 1):
            rows_of_prompt = torch.nonzero(rollout.prompt == prompt)[:, 0].tolist()
            for rows in itertools.product(rows_of_prompt, repeat=num_generations):
                p = float(log_pi.detach()[list(rows)].exp().prod()) / 2
                (found,) = torch.autograd.grad(-loss(rollout[torch.tensor(rows)], log_probs_of(list(rows))), logits)
                mean, second, total = mean + p * found, second + p * float(found.square().sum()), total + p
        measured = report.by_policy[case.name]
        assert total == pytest.approx(1.0)
        assert torch.allclose(measured.exact, true.flatten(), atol=1e-12)
        assert torch.allclose(measured.expected, mean.flatten(), atol=1e-12)
        assert measured.variance == pytest.approx(second - float(mean.square().sum()))
        assert measured.bias == pytest.approx(float((mean - true).norm() / true.norm()), abs=1e-9)
    assert report.unbiased


def test_a_transformer_is_measured_by_its_weights() -> None:
    """grad J is that of `exact.policy_gradient`; a right loss is unbiased there. Control: a mean over tokens is not."""
    env = small()
    policy = random_policy(env)
    tree = exact.enumerate_tree(env)
    expected = exact.policy_gradient(env, policy)
    flat = torch.cat([expected[f"model.{name}"].double().flatten() for name, _ in policy.model.named_parameters()])
    assert torch.allclose(policy_case("", tree, policy).exact_gradient, flat, atol=1e-6)
    report = verify(relative, env, policy, num_generations=2)
    assert list(report.by_policy) == ["policy 0"] and report.bias < 1e-5 and report.cosine > 1 - 1e-9
    assert verify(FAULTS["mean over tokens"], env, policy, num_generations=2).bias > 0.01


def test_every_order_of_a_group_counts() -> None:
    """A loss that treats the middle of three differently: its mean weight is 1, so it is unbiased over all orders."""
    report = verify(middle_counts_more, small(num_prompts=1), num_generations=3)
    assert report.ordered and report.unbiased and report.num_batches == 7**3


def test_sampled_batches_have_an_error_bar() -> None:
    """A right loss holds within it, a wrong one does not, and too few batches show nothing."""
    env = small(num_prompts=1)
    right = verify(relative, env, num_generations=2, sampled_batches=1200)
    wrong = verify(FAULTS["mean over tokens"], env, num_generations=2, sampled_batches=1200)
    assert right.unbiased and 0 < max(each.stderr for each in right.by_policy.values()) < 0.1
    assert not wrong.unbiased and "within 3 standard errors" in right.describe_bias()
    few = verify(FAULTS["mean over tokens"], env, num_generations=2, sampled_batches=20)
    assert not few.unbiased and few.describe_bias().startswith("not known: the standard error is")


# -- right and wrong losses --------------------------------------------------------------------------------------------


def with_values(rollout: Rollout, log_probs: Tensor, values: Tensor) -> Tensor:
    """The exact V as the baseline of each token."""
    advantages = reward_to_go(rollout.rewards, rollout.mask) - values
    return policy_gradient_loss(log_probs, advantages, rollout.mask)


def gathered(rollout: Rollout, log_probs: Tensor, ref_all_log_probs: Tensor, all_log_probs: Tensor) -> Tensor:
    """REINFORCE by the probabilities of all tokens."""
    index = rollout.tokens[..., None]
    assert torch.equal(torch.where(rollout.mask, all_log_probs.gather(2, index)[..., 0], 0.0), log_probs)
    ref_log_probs = torch.where(rollout.mask, ref_all_log_probs.gather(2, index)[..., 0], 0.0)
    assert torch.equal(ref_log_probs, rollout.ref_log_probs)
    return to_go(rollout, all_log_probs.gather(2, index)[..., 0])


@pytest.mark.parametrize("loss", [to_go, with_values, gathered])
def test_right_losses_hold(loss: Any) -> None:
    """On the default toy, and where the reference masks tokens."""
    report = verify(loss)
    assert report.unbiased and report.cosine > 1 - 1e-12 and report.zero_at_optimum
    assert report.describe_bias() == "holds"
    assert report.zero_at_optimum_by_sample == (loss is with_values)  # the baseline of pi* takes all noise away
    if loss is not gathered:  # which computes with the probability 0 of masked tokens
        assert verify(loss, make(TASKS["sparse"])).unbiased


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(name: str) -> None:
    """Neither unbiased nor right but for a factor. Control: the losses that they are made from hold."""
    report = verify(FAULTS[name], small(num_prompts=1), num_generations=2)
    assert not report.unbiased and report.cosine < 0.9999 and report.bias > 1e-3
    assert report.describe_bias().startswith("no, off by up to")


def test_the_control_of_the_faults_holds() -> None:
    """In groups of 2 and in two groups; with a factor where the mean contains the completion itself."""
    assert verify(relative, num_generations=2).unbiased and verify(to_go, num_generations=2).unbiased
    two = verify(relative, small(num_prompts=1), num_generations=2, num_prompts=2)
    assert two.unbiased and two.num_batches == 28**2
    mean = verify(centred, small(num_prompts=1), num_generations=2)
    assert mean.cosine > 1 - 1e-12 and mean.bias == pytest.approx(0.5)
    assert "but for a factor of 0.5 to 0.5" in mean.describe_bias()


# -- agents ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "num_generations", "settings"),
    [
        (REINFORCE, 1, {"baseline": None}),
        (REINFORCE, 2, {"credit": "sequence"}),
        (REINFORCE, 2, {"credit": "q"}),
        (ActorCritic, 1, {"gae_lambda": 0.0}),
        (ActorCritic, 1, {"critic": "zero", "gae_lambda": 1.0}),
        (PPO, 1, {"n_epochs": 3, "batch_size": 1}),
        (RLOO, 2, {}),
        (PathConsistency, 2, {"n_epochs": 4, "replay_size": 8}),
        (GRPO, 2, {"scale_rewards": False}),
    ],
)
def test_what_the_updates_of_agents_climb(kind: Any, num_generations: int, settings: dict[str, Any]) -> None:
    """grad J; GRPO without the scale but for a factor, as a return is part of its own mean."""
    report = verify(agent_loss(kind, **settings), small(), num_generations=num_generations)
    if kind is GRPO:
        assert report.cosine > 1 - 1e-12 and report.bias == pytest.approx(0.5)
    else:
        assert report.unbiased, str(report)


@pytest.mark.parametrize("kind", [REINFORCE, ActorCritic, PPO, RLOO, GRPO, PathConsistency])
def test_the_gradient_is_that_of_the_agents_own_backward(kind: Any) -> None:
    """With its metrics and in micro-batches. Control: at other values it is another one."""
    env = small()
    tree = exact.enumerate_tree(env)
    case = default_cases(tree)[2]
    sample = sample_of(case, case, num_generations=2).batches(torch.tensor([[0, 3]]))[0]
    gradient = AgentGradient(agent_loss(kind), tree.mdp, 2, 1)
    found, own = gradient(sample).log_probs, gradient.in_micro_batches(sample, 2).log_probs
    assert torch.allclose(found, own, rtol=1e-12) and found.abs().max() > 0
    assert not torch.allclose(found, gradient(sample.change(rewards=sample.rollout.rewards + 1.0)).log_probs) or (
        kind in (RLOO, GRPO, PathConsistency)
    )


def test_what_other_updates_climb() -> None:
    """GRPO's scale and a wrong critic with GAE are biased, and the report shows where pi* is left."""
    grpo = verify(agent_loss(GRPO), small(), num_generations=2)
    assert not grpo.unbiased and grpo.cosine < 0.99 and grpo.zero_at_optimum
    biased = verify(agent_loss(PPO, critic="zero", gae_lambda=0.5), small())
    assert not biased.unbiased and not biased.zero_at_optimum and "no: its gradient there is" in str(biased)
    with pytest.raises(ValueError, match="critic must be 'exact' or 'zero', got 'none'"):
        agent_loss(PPO, critic="none")  # type: ignore[arg-type]


# -- bad input ---------------------------------------------------------------------------------------------------------


def drops(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Dropout on the log-probabilities."""
    return torch.nn.functional.dropout(log_probs).sum()


def flips(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """A coin of NumPy's."""
    return to_go(rollout, log_probs) * float(np.random.default_rng().normal())


def changes(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Normalises the rewards in place."""
    rollout.rewards -= rollout.rewards.mean()
    return to_go(rollout, log_probs)


def scales(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """A random step size: two completions that are the same have a gradient of 0 whatever it is."""
    return relative(rollout, log_probs) * float(np.random.default_rng().random())


def replaces(rollout: Rollout, log_probs: Tensor) -> Tensor:
    """Puts other rewards in place of the rewards."""
    rollout.rewards = 2 * rollout.rewards
    return to_go(rollout, log_probs)


class Remembers:
    """A loss that grows from call to call."""

    calls = 0

    def __call__(self, rollout: Rollout, log_probs: Tensor) -> Tensor:
        """RLOO, times the number of calls."""
        self.calls += 1
        return relative(rollout, log_probs) * self.calls


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_generations": 0}, ValueError, r"num_generations must be in \[1, 64\], got 0"),
        ({"num_prompts": 10**6}, ValueError, r"num_prompts must be in \[1, 64\]"),
        ({"num_generations": 2.0}, TypeError, "num_generations must be a whole number, got 2.0"),
        ({"sampled_batches": 1}, ValueError, r"sampled_batches must be in \[2"),
        ({"max_batches": None}, TypeError, "max_batches must be a whole number"),
        ({"policy": "gpt2"}, TypeError, "policy must be a TransformerPolicy, or some of them, got 'gpt2'"),
        ({"policy": []}, TypeError, "policy must be a TransformerPolicy"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before anything is enumerated."""
    with pytest.raises(error, match=message):
        verify(to_go, small(), **arguments)
    with pytest.raises(TypeError, match="kind must be an agent's class"):
        agent_loss("grpo")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (3, TypeError, r"must be a function \(rollout, log_probs, \*\*extra\) -> scalar, got 3"),
        (lambda rollout: 0, TypeError, r"takes \(rollout, log_probs\) and any of all_log_probs, .*got \(rollout\)"),
        (lambda rollout, log_probs, beta: 0, TypeError, "missing a required argument: 'beta'"),
        (lambda rollout, log_probs: 0.0, TypeError, "must return a tensor, a scalar to go down, got float"),
        (lambda rollout, log_probs: log_probs.sum(dim=1), ValueError, r"must return a scalar, got the shape \(2,\)"),
        (lambda rollout, log_probs: rollout.rewards.sum(), ValueError, "must depend on log_probs.*was it detached"),
        (lambda rollout, log_probs: log_probs.detach().sum(), ValueError, "must depend on log_probs"),
        (lambda rollout, log_probs: log_probs.sum() * np.nan, ValueError, "must be finite, got nan"),
        (lambda rollout, log_probs: (log_probs * 0.0).sqrt().sum(), ValueError, "gradient of the loss must be finite"),
        (changes, ValueError, "must not change its arguments in place"),
        (replaces, ValueError, "must not change its arguments"),
        (Remembers(), ValueError, "remember earlier calls"),
        (lambda rollout, log_probs: torch.zeros((), requires_grad=True) * 1.0, ValueError, "other tensors alone"),
        (scales, ValueError, "random numbers"),
        (RLOO, TypeError, r"The loss of an agent is agent_loss\(RLOO\), got the class itself"),
        (drops, ValueError, "must not draw random numbers"),
        (flips, ValueError, "must not draw random numbers"),
    ],
)
def test_bad_losses_are_refused(loss: Any, error: type[Exception], message: str) -> None:
    """With the rule and what was found."""
    with pytest.raises(error, match=message):
        verify(loss, small(), num_generations=2)


def test_too_many_batches_are_refused_before_time_is_spent() -> None:
    """With their number."""
    calls: list[int] = []
    with pytest.raises(TooManyBatches, match="639,540 batches of 1 x 8 completions, the limit is 50,000"):
        verify(lambda rollout, log_probs: calls.append(1), num_generations=8)  # type: ignore[arg-type, return-value]
    assert calls == []


def test_the_default_toy_is_as_the_docstring_says() -> None:
    """3 tokens, up to 3 of them, 2 prompts: 30 completions."""
    assert exact.enumerate_tree(default_toy()).num_completions == 30
