"""Updates: epochs and minibatches, micro-batches, the clip, and the training of the critic."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import GRPO, PPO, RLOO, ActorCritic, PathConsistency
from agents.sampling import Rollout, new_generator
from agents.training.updater import minibatches
from tests.helpers.agents import FOREVER, agent_of, every_kind, task
from tests.helpers.policies import random_policy

# -- epochs and minibatches --------------------------------------------------------------------------------------------


def update_ppo(**settings: Any) -> tuple[Any, dict[str, float]]:
    """PPO after one batch, and its metrics."""
    agent, batches = agent_of(PPO, **settings), list[dict[str, float]]()
    agent.learn(1, callback=lambda agent, rollout, metrics: batches.append(metrics))
    return agent, batches[0]


@pytest.mark.parametrize(("n_epochs", "batch_size", "count"), [(1, None, 1), (3, None, 3), (2, 4, 8), (2, 6, 6)])
def test_ppo_takes_one_step_per_minibatch(n_epochs: int, batch_size: int | None, count: int) -> None:
    """n_epochs passes over 16 completions, ceil(16 / batch_size) minibatches each."""
    agent, metrics = update_ppo(n_epochs=n_epochs, batch_size=batch_size)
    assert metrics["num_minibatches"] == count
    assert {int(state["step"]) for state in agent.optimization.optimizer.state.values()} == {count}


def test_every_epoch_uses_every_completion_once() -> None:
    """The minibatches of an epoch are a permutation of all rows; each epoch has its own."""
    rows = minibatches(16, n_epochs=2, batch_size=6, generator=new_generator("cpu", 0))
    first, second = torch.cat(rows[:3]), torch.cat(rows[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(16))
    assert not first.equal(second) and first.tolist() != list(range(16))


def test_target_kl_stops_the_epochs() -> None:
    """A tiny target stops the epochs after the first step (where rho = 1), a huge one never."""
    stopped, metrics = update_ppo(n_epochs=5, learning_rate=0.05, target_kl=1e-6)
    assert metrics["num_minibatches"] == 1
    assert metrics["policy/approxkl_avg"] > 1e-6 and metrics["val/ratio_error_max"] > 1e-3 and metrics["val/ess"] < 1
    first = update_ppo(n_epochs=1, learning_rate=0.05)[1]  # control: that of the one step is perfect
    assert first["policy/approxkl_avg"] < 1e-6 and metrics["grad_norm"] == first["grad_norm"]
    assert {int(state["step"]) for state in stopped.optimization.optimizer.state.values()} == {1}
    assert update_ppo(n_epochs=5, learning_rate=0.05, target_kl=1e6)[1]["num_minibatches"] == 5


def test_the_clip_limits_the_kl() -> None:
    """With many large steps the clip binds; without a clip KL(pi_old || pi) becomes larger."""
    settings = {"n_epochs": 20, "learning_rate": 0.02}
    clipped = update_ppo(clip_range=0.1, **settings)[1]
    free = update_ppo(clip_range=None, **settings)[1]
    assert clipped["policy/clipfrac_avg"] > 0 == free["policy/clipfrac_avg"]
    assert clipped["policy/approxkl_avg"] < free["policy/approxkl_avg"]


def test_ppo_reports_the_effective_sample_size_and_the_clipped_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """val/ess is 1 in the first minibatch, and the metric is the minimum; clipfrac lies between its two sides."""
    ess: list[float] = []
    policy_loss = PPO.policy_loss

    def recorded(*arguments: Any) -> Any:
        found = policy_loss(*arguments)
        ess.append(float(found[1]["val/ess"]))
        return found

    monkeypatch.setattr(PPO, "policy_loss", recorded)
    assert update_ppo(n_epochs=1)[1]["val/ess"] == pytest.approx(1.0, abs=1e-5)
    ess.clear()
    metrics = update_ppo(n_epochs=20, learning_rate=0.02, clip_range=0.1)[1]
    assert ess[0] == pytest.approx(1.0, abs=1e-5) and 0 < metrics["val/ess"] == min(ess) < 0.9
    high, low = metrics["policy/clipfrac_high_avg"], metrics["policy/clipfrac_low_avg"]
    assert 0 < min(high, low) < metrics["policy/clipfrac_avg"] < max(high, low)
    assert update_ppo(n_epochs=20, learning_rate=1e-5)[1]["val/ess"] > 0.999  # control: small steps


# -- micro-batches -----------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("size", [1, 5, 16, 99])
def test_micro_batches_take_the_same_step(kind: Any, size: int) -> None:
    """Any micro_batch_size gives the same gradient within 1e-5, the same metrics, and as many steps."""
    settings = {"n_epochs": 1} if hasattr(kind, "n_epochs") else {}
    if kind is PathConsistency:  # whole groups
        settings, size = settings | {"num_generations": 2}, 2 * size
    whole, split = (agent_of(kind, micro_batch_size=each, **settings) for each in (None, size))
    rollout = whole.collect()
    expected, found = whole.train(rollout), split.train(rollout)
    for theirs, ours in zip(whole.policy.parameters(), split.policy.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None)
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-5)
    assert {name for name in expected if name.startswith("policy/clipfrac_")} <= found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-5)
    assert {int(state["step"]) for state in split.optimization.optimizer.state.values()} == {1}


@pytest.mark.parametrize("kind", [PPO, RLOO, GRPO])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_micro_batches_have_the_same_metrics_far_from_the_old_policy(kind: Any, size: int) -> None:
    """Where ratios and lengths differ, every metric is that of the whole minibatch, for every micro_batch_size.

    A plain mean over the micro-batches is another number.
    """
    agent = agent_of(kind, n_epochs=1, micro_batch_size=size)
    rollout = agent.collect()
    noise = 0.7 * torch.randn(rollout.mask.shape, generator=new_generator("cpu", 3))
    far = replace(rollout, log_probs=torch.where(rollout.mask, rollout.log_probs + noise, 0.0))
    expected = agent_of(kind, n_epochs=1).train(far)
    found = agent.train(far)
    names = [name for name in expected if name.startswith(("policy/", "val/", "loss/"))]
    assert len(names) > 7 and expected["val/ess"] < 0.9
    assert {name: found[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-4)
    rows = torch.arange(len(far)).split(size)
    if kind is PPO:  # control
        each = [agent_of(kind, n_epochs=1).train(far[micro_batch])["policy/approxkl_avg"] for micro_batch in rows]
        assert abs(np.mean(each) / expected["policy/approxkl_avg"] - 1) > 1e-3


def test_no_forward_pass_is_larger_than_a_micro_batch() -> None:
    """The largest forward pass with a gradient has micro_batch_size completions."""
    agent = agent_of(PPO, n_epochs=2, batch_size=8, micro_batch_size=3)
    rollout, sizes, forward = agent.collect(), [], agent.policy.evaluate_actions
    agent.policy.evaluate_actions = lambda ids, *rest, **more: (sizes.append(len(ids)), forward(ids, *rest, **more))[1]
    agent.train(rollout)
    assert sizes == [3, 3, 2] * 4


# -- the critic --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ActorCritic, PPO])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_a_warm_up_trains_only_the_critic(kind: Any, separate_critic: bool) -> None:
    """For value_warmup updates the model is unchanged bit for bit, while V is trained; then both are trained."""
    env = task()
    policy = random_policy(env, scale=0.1, separate_critic=separate_critic).float()
    agent = kind(policy, env, value_warmup=2, n_episodes=16, seed=0)
    states = []

    def keep(agent: Any, rollout: Rollout, metrics: dict[str, float]) -> bool:
        states.append({name: tensor.clone() for name, tensor in agent.policy.state_dict().items()})
        return agent.num_updates < 3

    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    agent.learn(FOREVER, callback=keep)
    model = [name for name in before if name.startswith("model.")]
    assert all(torch.equal(before[name], state[name]) for state in states[:2] for name in model)
    assert not any(torch.equal(states[1][name], states[2][name]) for name in model if name.endswith("c_fc.weight"))
    value = [name for name in before if name.startswith(("value_head.", "critic.")) and name.endswith("weight")]
    assert len(value) > 1 or not separate_critic
    assert not any(torch.equal(before["value_head.weight"], state["value_head.weight"]) for state in states)


@pytest.mark.parametrize("kind", [ActorCritic, PPO])
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_critic_has_its_own_step_size(kind: Any, separate_critic: bool, tmp_path: Path) -> None:
    """The model has step size learning_rate, value head and separate critic vf_learning_rate; also after loading."""
    env = task()

    def changes(**settings: Any) -> dict[str, float]:
        policy = random_policy(env, scale=0.1, separate_critic=separate_critic).float()
        before = {name: tensor.clone() for name, tensor in policy.named_parameters()}
        agent = kind(policy, env, n_episodes=16, seed=0, **settings)
        agent.learn(1)
        agent.save(tmp_path / str(settings))
        loaded = kind.load(tmp_path / str(settings), env)
        rates = [group["lr"] for group in loaded.optimization.optimizer.param_groups]
        assert rates == [settings["learning_rate"], settings.get("vf_learning_rate", settings["learning_rate"])]
        return {name: (p - before[name]).abs().max().item() for name, p in policy.named_parameters()}

    model, critic = ("model.",), ("value_head.", "critic.")
    frozen_model = changes(learning_rate=0.0, vf_learning_rate=1e-2)
    assert all(size == 0 for name, size in frozen_model.items() if name.startswith(model))
    assert frozen_model["value_head.weight"] > 0
    frozen_critic = changes(learning_rate=1e-2, vf_learning_rate=0.0)
    assert all(size == 0 for name, size in frozen_critic.items() if name.startswith(critic))
    assert max(size for name, size in frozen_critic.items() if name.startswith(model)) > 0
    same = changes(learning_rate=1e-2)  # None is learning_rate
    assert same["value_head.weight"] > 0 and same == changes(learning_rate=1e-2, vf_learning_rate=1e-2)


class SavedTensor:
    """A tensor saved for a backward pass."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("kind", [ActorCritic, PPO])
def test_policy_and_separate_critic_are_not_in_memory_together(kind: Any) -> None:
    """The policy's saved tensors are freed before the critic's forward pass; the gradient is that of the sum."""
    env = task()
    policy = random_policy(env, scale=0.1, separate_critic=True)
    agent = kind(policy, env, n_episodes=16, seed=0)
    rollout, values, alive = agent.collect(), policy.values, weakref.WeakSet[SavedTensor]()
    batch = agent.batch(rollout)
    at_the_critic: list[int] = []

    def counted(*inputs: Any) -> torch.Tensor:
        at_the_critic.append(len(alive))
        return values(*inputs)

    def save(tensor: torch.Tensor) -> SavedTensor:
        alive.add(saved := SavedTensor(tensor.detach()))
        return saved

    policy.values = counted
    with torch.autograd.graph.saved_tensors_hooks(save, lambda saved: saved.tensor):
        agent.backward(batch)
        found = [parameter.grad.clone() for parameter in agent.optimization.trained]
        both = list(agent.losses(batch))  # control: both losses before a backward pass
        expected = torch.autograd.grad(sum(loss for loss, _ in both), agent.optimization.trained)
    assert at_the_critic[0] == 0 < at_the_critic[1]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
