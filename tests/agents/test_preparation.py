"""What an update trains on: the KL in the loss, and samplers whose log-probabilities are not the trainer's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, TransformerPolicy
from agents.functional import GROUP_LOSSES, KL_LOSSES, exact_kl
from agents.preparation import prepare
from agents.sampling import Rollout, reference_distributions, sample
from tests.helpers.agents import agent_of, every_advantage, every_kind, task
from tests.helpers.models import task as model_task
from tests.helpers.rollouts import uneven_rollout

NAMES = [*KL_LOSSES, "exact"]
BETA = task().unwrapped.mdp.kl_coef


def settings_of(kind: Any, **more: Any) -> dict[str, Any]:
    """One epoch for the agents that have several."""
    return ({"n_epochs": 1} if hasattr(kind, "n_epochs") else {}) | more


def off_by(policy: Any, mdp: Any, state: Any, generator: Any) -> Any:
    """A sampler whose log-probabilities are 0.3 too low in every other token."""
    generation = sample(policy, mdp, state, generator)
    wrong = 0.3 * (torch.arange(generation.log_probs.shape[1]) % 2)
    return generation._replace(log_probs=generation.log_probs - wrong)


def gradient(agent: Any, rollout: Rollout) -> list[Tensor]:
    """What `train` leaves of the prepared rollout."""
    agent.train(prepare(agent, rollout)[0])
    return [p.grad.clone() for p in agent.policy.parameters() if p.grad is not None]


def learned(agent: Any) -> tuple[Rollout, dict[str, float]]:
    """The rollout and the metrics of an update."""
    rows: list[tuple[Rollout, dict[str, float]]] = []
    agent.learn(1, callback=lambda agent, rollout, metrics: rows.append((rollout, metrics)))
    return rows[0]


# -- the KL in the loss ------------------------------------------------------------------------------------------------


@every_advantage
@pytest.mark.parametrize("name", NAMES)
def test_the_rewards_are_without_the_kl_and_the_metrics_with_it(kind: Any, name: str) -> None:
    """`train` gets score and shaping alone; J, its KL and its standard error are those of the KL in the reward."""
    agent, other = agent_of(kind, kl_in="loss", kl_loss=name), agent_of(kind)
    trained, train = [], agent.train
    agent.train = lambda rollout: (trained.append(rollout), train(rollout))[1]
    (rollout, found), (_, expected) = learned(agent), learned(other)
    scores = torch.where(trained[0].mask.any(dim=1), rollout.scores, 0.0)
    torch.testing.assert_close(trained[0].rewards.sum(dim=1), scores, rtol=0, atol=1e-5)
    names = [each for each in expected if each.startswith(("objective/", "completions/"))]
    assert {each: found[each] for each in names} == {each: expected[each] for each in names}
    assert "loss/kl_avg" in found and "loss/kl_avg" not in expected
    assert not torch.equal(rollout.rewards, trained[0].rewards)  # control


@every_advantage
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_have_the_same_gradient_and_metrics(kind: Any, name: str, size: int) -> None:
    """With the KL in the loss, within 1e-5."""
    whole, split = (
        agent_of(kind, **settings_of(kind, kl_in="loss", kl_loss=name, micro_batch_size=each)) for each in (None, size)
    )
    rollout = prepare(whole, whole.collect())[0]
    expected, found = whole.train(rollout), split.train(rollout)
    for theirs, ours in zip(whole.policy.parameters(), split.policy.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("loss", GROUP_LOSSES)
@pytest.mark.parametrize("size", [1, 5])
def test_micro_batches_have_the_same_gradient_with_every_loss_of_grpo(loss: str, size: int) -> None:
    """Far from the old policy, with the KL in the loss: also where the divisor is the mean length of the batch."""
    settings: dict[str, Any] = {"loss": loss, "n_epochs": 1, "kl_in": "loss", "num_generations": 4}
    whole, split = (agent_of(GRPO, micro_batch_size=each, **settings) for each in (None, size))
    rollout = uneven_rollout(task())
    expected, found = whole.train(rollout), split.train(rollout)
    for theirs, ours in zip(whole.policy.parameters(), split.policy.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_exact_kl_is_that_of_all_tokens() -> None:
    """By the next-token distributions of policy and reference, state by state; the metric is beta times the sum."""
    agent = agent_of(REINFORCE, kl_in="loss", kl_loss="exact")
    rollout = prepare(agent, agent.collect())[0]
    found = agent.train(rollout)["loss/kl_avg"]
    agent = agent_of(REINFORCE)
    total = 0.0
    for row, t in torch.nonzero(rollout.mask).tolist():
        column = rollout.input_ids.shape[1] - rollout.num_tokens + t
        attention = rollout.attention_mask[[row], :column]
        ids = torch.where(attention == 1, rollout.input_ids[[row], :column], 0)
        reference = torch.as_tensor(agent.mdp.reference.log_probs(ids.numpy(), attention.numpy()))
        with torch.no_grad():
            logits = agent.policy.next_token_logits(ids, attention).masked_fill(reference == -torch.inf, -torch.inf)
        log_probs, allowed = logits.log_softmax(dim=1), reference > -torch.inf
        total += float((log_probs.exp() * (log_probs - reference))[allowed].sum())
    assert found == pytest.approx(BETA * total / len(rollout), rel=1e-4)


def test_a_language_models_distributions_are_those_of_its_tokens() -> None:
    """`all_log_probs` at the sampled tokens is `token_log_probs`; a policy that is its copy has an exact KL of 0."""
    env = model_task("gpt2")
    agent = REINFORCE(TransformerPolicy.for_env(env), env, n_episodes=8, seed=0, kl_in="loss", kl_loss="exact")
    rollout = agent.collect()
    inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    found = reference_distributions(agent.mdp, *inputs)
    taken = torch.where(rollout.mask, found.gather(2, rollout.tokens[..., None]).squeeze(2), 0.0)
    torch.testing.assert_close(taken, rollout.ref_log_probs, rtol=0, atol=1e-5)
    evaluation: Any = agent.evaluate_actions(rollout)
    assert exact_kl(evaluation.all_log_probs, found, rollout.mask).abs().max() < 1e-5


# -- samplers ----------------------------------------------------------------------------------------------------------


@every_advantage
@pytest.mark.parametrize("correction", ["truncate", "mask"])
def test_a_sampler_is_corrected(kind: Any, correction: str) -> None:
    """rho is 1 in the first minibatch, and the KL of the rewards is the trainer's. Control: without, it is off."""
    agent = agent_of(kind, sampler_correction=correction, sampler_cap=1.2)
    agent.sampler = off_by
    rollout, metrics = learned(agent)
    assert metrics["val/first_ratio_error_avg"] < 1e-5
    agent = agent_of(kind, sampler_correction=correction, sampler_cap=1.2)
    prepared, found = prepare(agent, rollout)
    kl = BETA * torch.where(rollout.mask, prepared.log_probs - rollout.log_probs, 0.0)
    torch.testing.assert_close(prepared.rewards, rollout.rewards - kl, rtol=0, atol=1e-6)
    assert prepared.weights is not None
    above = (prepared.log_probs - rollout.log_probs).sum(dim=1).exp() > 1.2
    assert 0 < above.sum() < len(above)
    share = float(rollout.mask[above].sum() / rollout.mask.sum())
    assert found["sampler/capped_ratio"] == pytest.approx(share, abs=1e-6) == metrics["sampler/capped_ratio"]
    assert prepared.weights.max() == pytest.approx(1.2 if correction == "truncate" else 1.0, abs=1e-4)
    assert found["sampler/weight_avg"] == pytest.approx(float(prepared.weights[rollout.mask].mean()), abs=1e-6)
    wrong = agent_of(kind)
    wrong.sampler = off_by
    control = learned(wrong)[1]
    assert control["val/first_ratio_error_avg"] > 0.01 and "sampler/weight_avg" not in control


@every_advantage
def test_weights_multiply_the_advantages(kind: Any) -> None:
    """A completion of weight 0 has no part in the policy's gradient, one of weight 2 a double one."""
    agents = [agent_of(kind, **settings_of(kind, max_grad_norm=1e9)) for _ in range(3)]
    rollout = agents[0].collect()
    for agent in agents:
        if hasattr(agent, "vf_coef"):
            agent.vf_coef = 0.0
    zeros = torch.zeros(rollout.mask.shape)
    once, none, twice = (
        gradient(agent, replace(rollout, weights=weights))
        for agent, weights in zip(agents, (None, zeros, zeros + 2.0), strict=True)
    )
    assert all(not g.any() for g in none) and any(g.any() for g in once)
    for g, double in zip(once, twice, strict=True):
        torch.testing.assert_close(double, 2 * g, rtol=1e-4, atol=1e-6)


def test_the_trainer_computes_in_micro_batches() -> None:
    """No forward pass is larger; the result is that of one pass."""
    agent, whole = agent_of(PPO, sampler_correction="truncate", micro_batch_size=5), agent_of(PPO)
    rollout, sizes, forward = whole.collect(), [], agent.policy.evaluate_actions
    agent.policy.evaluate_actions = lambda ids, *rest, **more: (sizes.append(len(ids)), forward(ids, *rest, **more))[1]
    found = prepare(agent, rollout)[0]
    assert sizes == [5, 5, 5, 1] and not found.log_probs.requires_grad
    torch.testing.assert_close(found.log_probs, rollout.log_probs, rtol=0, atol=1e-5)


@every_kind
def test_nothing_is_prepared_by_default(kind: Any) -> None:
    """The very rollout that was sampled, and no forward pass."""
    agent = agent_of(kind)
    rollout = agent.collect()
    prepared, metrics = prepare(agent, rollout)
    assert prepared is rollout and metrics == {}


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (RLOO, {"sampler_correction": "mask", "sampler_level": "token"}, "sampler_level must be 'sequence' for RLOO"),
        (PPO, {"sampler_cap": 0.5}, r"sampler_cap must be in \[1, "),
        (PPO, {"importance": "geometric"}, "importance must be one of token, sequence, prefix"),
        (GRPO, {"loss": "bnpo"}, "loss must be one of dr_grpo, grpo, dapo, gspo, cispo, sapo"),
        (GRPO, {"loss": "gspo", "importance": "prefix"}, "importance must be 'token' with loss='gspo'"),
        (REINFORCE, {"kl_loss": "k4"}, "kl_loss must be one of k1, k2, k3, k3_rho, exact"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    """With the rule and what was given."""
    with pytest.raises(ValueError, match=message):
        agent_of(kind, **settings)


def test_settings_are_saved_with_an_agent(tmp_path: Path) -> None:
    """All of them."""
    settings: dict[str, Any] = {
        "loss": "dapo", "importance": "prefix", "kl_in": "loss", "kl_loss": "exact", "normalize_advantage": True,
        "sampler_correction": "mask", "sampler_level": "token", "sampler_cap": 3.0,
    }  # fmt: skip
    agent = agent_of(GRPO, **settings)
    agent.save(tmp_path / "agent")
    loaded = GRPO.load(tmp_path / "agent", task())
    assert {name: getattr(loaded, name) for name in settings} == settings


@pytest.mark.parametrize("kind", [REINFORCE, RLOO, GRPO])
def test_advantages_are_whitened_over_the_tokens_of_the_batch(kind: Any) -> None:
    """Mean 0 and variance 1 over the real tokens. Control: by default they are not."""
    for normalize in (True, False):
        agent = agent_of(kind, **settings_of(kind, normalize_advantage=normalize, num_generations=4))
        rollout, batches, backward = uneven_rollout(task()), [], agent.backward
        agent.backward = lambda batch, *rest, b=batches, f=backward: (b.append(batch), f(batch, *rest))[1]
        agent.train(rollout)
        advantages = batches[0].advantages[batches[0].rollout.mask].double()
        white = abs(float(advantages.mean())) < 1e-5 and abs(float(advantages.var(correction=0)) - 1) < 1e-4
        assert white == normalize


def test_weights_are_selected_with_their_rows() -> None:
    """And V of `ActorCritic` is trained on returns without them."""
    agent = agent_of(ActorCritic, sampler_correction="truncate")
    rollout = prepare(agent, agent.collect())[0]
    rows = torch.tensor([3, 1])
    assert rollout.weights is not None and torch.equal(rollout[rows].weights, rollout.weights[rows])  # type: ignore[arg-type]
    expected = replace(rollout, weights=None)
    assert torch.equal(agent.batch(rollout).returns, agent.batch(expected).returns)
