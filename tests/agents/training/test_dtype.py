"""Models in bfloat16, on the CPU and on a GPU: rewards are exact, the rest is within the rounding of the dtype."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from agents.training import MasterWeights
from tests.helpers.models import DEVICES, HALF, MEAN, WORST, half_stories
from tests.helpers.tasks import make, stories
from textenv import exact, get_mdp

GRADIENT = 0.1  # of a gradient's length


@pytest.mark.parametrize("device", DEVICES)
def test_log_probs_equal_those_of_float32_up_to_rounding(device: str, assets: Path) -> None:
    """Sampled, recomputed in one pass, and the reference's; control: a temperature of 0.97 is farther away."""
    env, policy = half_stories(assets, device)
    assert policy.model.dtype == HALF and policy.value_head.weight.dtype == torch.float32
    rollout = collect(env, policy, 32, generator=new_generator(device, 0))
    assert rollout.log_probs.dtype == rollout.ref_log_probs.dtype == torch.float32
    float32 = copy.deepcopy(policy).cast(torch.float32).cpu()
    ids, attention = rollout.input_ids.cpu(), rollout.attention_mask.cpu()
    with torch.no_grad():
        again = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
        expected = float32.evaluate_actions(ids, attention, rollout.num_tokens).log_probs
        float32.temperature = 0.97
        warmer = float32.evaluate_actions(ids, attention, rollout.num_tokens).log_probs
    mask = rollout.mask.cpu()
    for found in (rollout.log_probs, rollout.ref_log_probs, again):
        error = (found.cpu() - expected)[mask].abs()
        assert error.mean() < MEAN and error.max() < WORST
        assert (found.cpu() - warmer)[mask].abs().mean() > MEAN


@pytest.mark.parametrize("device", DEVICES)
def test_rewards_are_exact(device: str, assets: Path) -> None:
    """r_t equals the reward computed on the CPU from the same ids and log-probabilities, to the last digit of float32.

    The score is that of an environment without a language model, stepped with those ids.
    """
    env, policy = half_stories(assets, device)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.2)  # away from the reference
    rollout = collect(env, policy, 16, generator=new_generator(device, 0))
    plain_env = make(stories(assets, max_new_tokens=16, reference=None))
    log_ratio = (rollout.log_probs.cpu() - rollout.ref_log_probs.cpu()).double()
    expected = -get_mdp(env).kl_coef * log_ratio
    for row, mask in enumerate(rollout.mask.cpu()):
        ids = rollout.tokens[row].cpu()[mask].tolist()
        plain_env.reset(options={"prompt": int(rollout.prompt[row])})
        expected[row, len(ids) - 1] += [plain_env.step(token)[-1] for token in ids][-1]["score"]
    assert torch.allclose(rollout.rewards.cpu(), expected.float(), rtol=1e-6, atol=1e-6)
    assert log_ratio.abs().max() > 0.05 and rollout.scores.unique().numel() > 1  # control: both terms vary
    assert rollout.scores.dtype == rollout.rewards.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_language_model_in_float32_is_the_same_on_a_gpu(assets: Path) -> None:
    """The log-probabilities of policy and reference in sampling on the GPU equal the CPU's for the same ids."""
    env = make(stories(assets, max_new_tokens=16))
    reference: Any = get_mdp(env).reference
    cpu, gpu = TransformerPolicy.for_env(env), TransformerPolicy.for_env(env).to("cuda")
    reference.model.to("cuda")
    rollout = collect(env, gpu, 32, generator=new_generator("cuda", 0))
    with torch.no_grad():
        expected = cpu.evaluate_actions(rollout.input_ids.cpu(), rollout.attention_mask.cpu(), rollout.num_tokens)
    mask = rollout.mask.cpu()
    for found in (rollout.log_probs, rollout.ref_log_probs):
        assert torch.allclose(found.cpu()[mask], expected.log_probs[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_ratio_is_1_up_to_rounding(device: str, assets: Path) -> None:
    """One parallel pass over sequences that were sampled token by token, both in bfloat16."""
    env, policy = half_stories(assets, device)
    agent = PPO(policy, env, n_epochs=1, n_episodes=32, learning_rate=0.0, seed=0)
    info = agent.train(agent.collect())
    assert info["val/ratio_error_max"] < WORST and abs(info["val/ratio"] - 1) < MEAN


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_equals_that_of_float32_up_to_rounding(device: str, assets: Path) -> None:
    """PPO's gradient from the same completions; control: that from other completions is far away."""
    env, policy = half_stories(assets, device)
    rollouts = [collect(env, policy, 32, generator=new_generator(device, seed)) for seed in (0, 1)]
    float32 = copy.deepcopy(policy).cast(torch.float32)
    expected, found = gradient(float32, env, rollouts[0]), gradient(policy, env, rollouts[0])
    other = gradient(policy, env, rollouts[1])
    assert (found - expected).norm() < GRADIENT * expected.norm() < (other - expected).norm()


def gradient(policy: TransformerPolicy, env: Any, rollout: Rollout) -> torch.Tensor:
    """The gradient of PPO's loss on a rollout, as one vector."""
    agent = PPO(policy, env, n_episodes=len(rollout), seed=0)
    batch = agent.batch(rollout)
    agent.backward(batch)
    return torch.cat([p.grad.flatten() for p in agent.optimization.stepped if p.grad is not None])


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_with_other_kernels(device: str, assets: Path) -> None:
    """In float32: eager attention gives the same gradient, matrix products in lower precision nearly the same."""
    env = make(stories(assets, max_new_tokens=16))
    reference: Any = get_mdp(env).reference
    reference.model.to(device)
    policy = TransformerPolicy.for_env(env).to(device)
    rollouts = [collect(env, policy, 32, generator=new_generator(device, seed)) for seed in (0, 1)]
    expected, other = (gradient(policy, env, rollout) for rollout in rollouts)
    policy.model.set_attn_implementation("eager")
    eager = gradient(policy, env, rollouts[0])
    torch.set_float32_matmul_precision("medium")
    medium = gradient(policy, env, rollouts[0])
    assert (eager - expected).norm() < 1e-4 * expected.norm()
    assert (medium - expected).norm() < GRADIENT * expected.norm() < (other - expected).norm()


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_taj_mahal_in_bfloat16(device: str) -> None:
    """PPO's share of the way to the optimum is above 0.9."""
    env = gym.make_vec("textenv/TajMahal-v0", num_envs=1)
    policy = TransformerPolicy.for_env(env).cast(HALF).to(device)
    solution = exact.solve(env)
    PPO(policy, env, learning_rate=1e-3, seed=0).learn(20_000)
    reached = exact.evaluate(env, policy).objective
    assert reached > 0.1 * solution.reference_objective + 0.9 * solution.objective


def test_a_saved_agent_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Master weights, moments and the generator are restored: the next updates are the same."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    policy = TransformerPolicy.for_env(env).cast(HALF)
    agent = PPO(policy, env, learning_rate=1e-3, n_episodes=8, seed=0).learn(100)
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path, env=env)
    assert loaded.policy.model.dtype == HALF
    for other in (agent, loaded):
        other.learn(100)
    for ours, theirs in zip(
        agent.optimization.master_weights.state(), loaded.optimization.master_weights.state(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_small_steps_accumulate_in_master_weights() -> None:
    """A hundred steps of 1e-4 change a weight of 1 by 0.01; without master weights it would not change."""
    without, weight = (torch.nn.Parameter(torch.ones(3, dtype=HALF)) for _ in range(2))
    master_weights = MasterWeights([weight])
    (master,) = master_weights.for_parameters([weight])
    for _ in range(100):
        with torch.no_grad():
            without -= 1e-4
        weight.grad = torch.full_like(weight, 1e-4)
        master_weights.accumulate_gradients()
        assert weight.grad is None and master.grad is not None
        with torch.no_grad():
            master -= master.grad
        master.grad = None
        master_weights.update_weights()
    assert without.tolist() == [1.0] * 3
    assert weight.tolist() == pytest.approx([0.99] * 3, abs=0.004)
    float32 = torch.nn.Parameter(torch.ones(3))
    assert MasterWeights([float32]).for_parameters([float32])[0] is float32 and MasterWeights([float32]).state() == []


def test_value_warmup_does_not_change_the_model() -> None:
    """Only the value head, whose weights are float32, is trained at first."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    policy = TransformerPolicy.for_env(env).cast(HALF)
    before, head = copy.deepcopy(policy.model.state_dict()), policy.value_head.weight.detach().clone()
    PPO(policy, env, value_warmup=1, n_episodes=8, seed=0).learn(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.model.state_dict().items())
    assert not policy.value_head.weight.equal(head)


def test_an_adapter_on_a_bfloat16_reference(assets: Path) -> None:
    """The reference's weights are in bfloat16, the adapter's in float32, and the adapter is trained."""
    from peft import LoraConfig

    env = make(stories(assets))
    reference: Any = get_mdp(env).reference
    reference.model.to(HALF)
    policy = TransformerPolicy.for_env(env, lora=LoraConfig(r=2, target_modules="all-linear")).cast(HALF)
    agent = REINFORCE(policy, env, n_episodes=8, seed=0)
    assert {p.dtype for p in agent.optimization.trained} == {
        torch.float32
    } and agent.optimization.master_weights.state() == []
    before = [p.detach().clone() for p in agent.optimization.trained]
    agent.learn(1)
    assert any(not p.equal(old) for p, old in zip(agent.optimization.trained, before, strict=True))
    assert reference.model.dtype == HALF
