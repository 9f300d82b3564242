"""Models in bfloat16, here and on a GPU: what must be exact stays so, the rest is within what the dtype can say."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import Rollout, collect, new_generator
from agents.training import MasterWeights
from experiments.__main__ import Run
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.trial import INITIAL, _agent, prepare, run_trial
from tests.helpers.models import DEVICES, HALF, MEAN, WORST, half_stories
from tests.helpers.tasks import TRIAL, make, stories
from textenv import exact, get_mdp

GRADIENT = 0.1  # of a gradient's length


@pytest.mark.parametrize("device", DEVICES)
def test_log_probs_are_those_of_float32_but_for_rounding(device: str, assets: Path) -> None:
    """As sampled, read again in one pass, of the reference: near float32 on the CPU, not at a temperature of 0.97."""
    env, policy = half_stories(assets, device)
    assert policy.model.dtype == HALF and policy.value_head.weight.dtype == torch.float32
    rollout = collect(env, policy, 32, generator=new_generator(device, 0))
    assert rollout.log_probs.dtype == rollout.ref_log_probs.dtype == torch.float32
    whole = copy.deepcopy(policy).cast(torch.float32).cpu()
    ids, mask = rollout.input_ids.cpu(), rollout.attention_mask.cpu()
    with torch.no_grad():
        again = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
        exactly = whole.evaluate_actions(ids, mask, rollout.num_tokens).log_probs
        whole.temperature = 0.97
        warmer = whole.evaluate_actions(ids, mask, rollout.num_tokens).log_probs
    written = rollout.mask.cpu()
    for found in (rollout.log_probs, rollout.ref_log_probs, again):
        error = (found.cpu() - exactly)[written].abs()
        assert error.mean() < MEAN and error.max() < WORST
        assert (found.cpu() - warmer)[written].abs().mean() > MEAN


@pytest.mark.parametrize("device", DEVICES)
def test_rewards_are_exact(device: str, assets: Path) -> None:
    """Of the same ids and log-probabilities r_t is what the CPU makes of them, to the last digit of float32.

    The score is that of the environment, stepped here with those ids: whatever the models are held in.
    """
    env, policy = half_stories(assets, device)
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.mul_(1.2)  # away from the reference
    rollout = collect(env, policy, 16, generator=new_generator(device, 0))
    alone = make(stories(assets, max_new_tokens=16, reference=None))
    log_ratio = (rollout.log_probs.cpu() - rollout.ref_log_probs.cpu()).double()
    expected = -get_mdp(env).kl_coef * log_ratio
    for row, mask in enumerate(rollout.mask.cpu()):
        ids = rollout.tokens[row].cpu()[mask].tolist()
        alone.reset(options={"prompt": int(rollout.prompt[row])})
        expected[row, len(ids) - 1] += [alone.step(token)[-1] for token in ids][-1]["score"]
    assert torch.allclose(rollout.rewards.cpu(), expected.float(), rtol=1e-6, atol=1e-6)
    assert log_ratio.abs().max() > 0.05 and rollout.scores.unique().numel() > 1  # control: there is something to pay
    assert rollout.scores.dtype == rollout.rewards.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_language_model_in_float32_says_the_same_on_a_gpu(assets: Path) -> None:
    """Log-probabilities as sampled, of the policy and of the reference, beside the CPU's for the same ids."""
    env = make(stories(assets, max_new_tokens=16))
    reference: Any = get_mdp(env).reference
    here, there = TransformerPolicy.for_env(env), TransformerPolicy.for_env(env).to("cuda")
    reference.model.to("cuda")
    rollout = collect(env, there, 32, generator=new_generator("cuda", 0))
    with torch.no_grad():
        read = here.evaluate_actions(rollout.input_ids.cpu(), rollout.attention_mask.cpu(), rollout.num_tokens)
    mask = rollout.mask.cpu()
    for said in (rollout.log_probs, rollout.ref_log_probs):
        assert torch.allclose(said.cpu()[mask], read.log_probs[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_ratio_is_1_but_for_rounding(device: str, assets: Path) -> None:
    """One pass over texts that were sampled token by token, in the same bfloat16."""
    env, policy = half_stories(assets, device)
    agent = PPO(policy, env, n_epochs=1, n_episodes=32, learning_rate=0.0, seed=0)
    info = agent.train(agent.collect())
    assert info["val/ratio_error_max"] < WORST and abs(info["val/ratio"] - 1) < MEAN


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_is_that_of_float32_but_for_rounding(device: str, assets: Path) -> None:
    """Of PPO, from the same answers; that of other answers is nowhere near."""
    env, policy = half_stories(assets, device)
    rollouts = [collect(env, policy, 32, generator=new_generator(device, seed)) for seed in (0, 1)]
    whole = copy.deepcopy(policy).cast(torch.float32)
    exactly, found = gradient(whole, env, rollouts[0]), gradient(policy, env, rollouts[0])
    other = gradient(policy, env, rollouts[1])
    assert (found - exactly).norm() < GRADIENT * exactly.norm() < (other - exactly).norm()


def gradient(policy: TransformerPolicy, env: Any, rollout: Rollout) -> torch.Tensor:
    """Of PPO's loss on some answers, in one vector."""
    agent = PPO(policy, env, n_episodes=len(rollout), seed=0)
    advantages, returns = agent.advantages(rollout)
    rows = torch.arange(len(rollout))
    agent.backward(rows, lambda rows: agent.losses(rollout[rows], advantages[rows], returns[rows]))
    return torch.cat([p.grad.flatten() for p in agent.master_weights.masters_of(agent.trained) if p.grad is not None])


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_with_other_kernels(device: str, assets: Path) -> None:
    """In float32: eager attention says the same, matrices that may be multiplied in bfloat16 nearly so."""
    env = make(stories(assets, max_new_tokens=16))
    reference: Any = get_mdp(env).reference
    reference.model.to(device)
    policy = TransformerPolicy.for_env(env).to(device)
    rollouts = [collect(env, policy, 32, generator=new_generator(device, seed)) for seed in (0, 1)]
    exactly, other = (gradient(policy, env, rollout) for rollout in rollouts)
    policy.model.set_attn_implementation("eager")
    eager = gradient(policy, env, rollouts[0])
    torch.set_float32_matmul_precision("medium")
    medium = gradient(policy, env, rollouts[0])
    assert (eager - exactly).norm() < 1e-4 * exactly.norm()
    assert (medium - exactly).norm() < GRADIENT * exactly.norm() < (other - exactly).norm()


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_the_taj_mahal_is_learnt(device: str) -> None:
    """Nine tenths of the way to the optimum; the checkpoint is in bfloat16, and what is loaded says the same."""
    env = gym.make_vec("textenv/TajMahal-v0", num_envs=1)
    policy = TransformerPolicy.for_env(env).cast(HALF).to(device)
    solution = exact.solve(env)
    PPO(policy, env, learning_rate=1e-3, seed=0).learn(20_000)
    reached = exact.evaluate(env, policy).objective
    assert reached > 0.1 * solution.reference_objective + 0.9 * solution.objective


def test_a_saved_agent_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """MasterWeights, moments and numbers are kept: the next updates are the same."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    policy = TransformerPolicy.for_env(env).cast(HALF)
    agent = PPO(policy, env, learning_rate=1e-3, n_episodes=8, seed=0).learn(100)
    agent.save(tmp_path)
    loaded = PPO.load(tmp_path, env=env)
    assert loaded.policy.model.dtype == HALF
    for other in (agent, loaded):
        other.learn(100)
    for ours, theirs in zip(agent.master_weights.state(), loaded.master_weights.state(), strict=True):
        assert torch.equal(ours, theirs)


def test_small_steps_add_up_in_masters() -> None:
    """A hundred steps of 1e-4 move a weight of 1 by 0.01; in bfloat16 alone it would stay where it is."""
    alone, weight = (torch.nn.Parameter(torch.ones(3, dtype=HALF)) for _ in range(2))
    master_weights = MasterWeights([weight])
    (master,) = master_weights.masters_of([weight])
    for _ in range(100):
        with torch.no_grad():
            alone -= 1e-4
        weight.grad = torch.full_like(weight, 1e-4)
        master_weights.accumulate_gradients()
        assert weight.grad is None and master.grad is not None
        with torch.no_grad():
            master -= master.grad
        master.grad = None
        master_weights.update_weights()
    assert alone.tolist() == [1.0] * 3
    assert weight.tolist() == pytest.approx([0.99] * 3, abs=0.004)
    whole = torch.nn.Parameter(torch.ones(3))
    assert MasterWeights([whole]).masters_of([whole])[0] is whole and MasterWeights([whole]).state() == []


def test_warming_up_leaves_the_model_alone() -> None:
    """Only V, whose weights are float32, is trained at first."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=3)
    policy = TransformerPolicy.for_env(env).cast(HALF)
    before, head = copy.deepcopy(policy.model.state_dict()), policy.value_head.weight.detach().clone()
    PPO(policy, env, value_warmup=1, n_episodes=8, seed=0).learn(1)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.model.state_dict().items())
    assert not policy.value_head.weight.equal(head)


def test_a_trial_in_bfloat16(tmp_path: Path) -> None:
    """--dtype reaches policy and checkpoint; agents of other libraries refuse it."""
    flags = TRIAL | {"dtype": "bfloat16"}
    config = TrialConfig(**flags, agent="grpo", out=tmp_path / "run")
    _, folder, policy = prepare(config, "run", [config])
    assert policy.model.dtype == HALF
    run_trial(config, folder, folder / INITIAL)
    assert TransformerPolicy.from_pretrained(folder / "checkpoint").model.dtype == HALF
    assert TransformerPolicy.from_pretrained(folder / "checkpoint", dtype=torch.float32).model.dtype == torch.float32
    with pytest.raises(FlagError, match="--dtype bfloat16 is for our agents, not for sb3-ppo"):
        TrialConfig(**flags, agent="sb3-ppo")


def test_a_trial_with_other_kernels(assets: Path, tmp_path: Path) -> None:
    """Flags reach the process, the reference, the policy and its critic, and a run that goes on; the run learns."""
    task = {
        "env": "textenv/Text-v0",
        "model": str(assets / "stories260k"),
        "reward": ["tests.helpers.tasks:count_words"],
    }
    (tmp_path / "prompts.txt").write_text("Once\n")
    flags: dict[str, Any] = {"total_timesteps": 8, "n_episodes": 4, "max_new_tokens": 2, "num_evals": 1}
    flags |= task | {"eval_episodes": 2, "prompts": str(tmp_path / "prompts.txt"), "separate_critic": True}
    kernels: dict[str, Any] = {"float32_matmul_precision": "medium", "attn_implementation": "eager"}
    plain = TrialConfig(**flags, out=tmp_path / "plain")
    _, _, policy = prepare(plain, "run", [plain])
    assert torch.get_float32_matmul_precision() == "highest" and attention(policy.model) == "sdpa"
    torch.set_float32_matmul_precision("high")
    prepare(replace(plain, out=tmp_path / "again"), "run", [plain])
    assert torch.get_float32_matmul_precision() == "high"  # what is not told stays as it is
    config = TrialConfig(**flags, **kernels, out=tmp_path / "run")
    evaluator, folder, policy = prepare(config, "run", [config])
    assert torch.get_float32_matmul_precision() == "medium"
    reference: Any = get_mdp(evaluator.env).reference
    assert attention(policy.model) == attention(policy.critic) == attention(reference.model) == "eager"
    assert run_trial(config, folder, folder / INITIAL)["num_updates"] >= 1
    assert attention(_agent(config, config.make_env(), folder, folder / INITIAL).policy.model) == "eager"
    here, _ = Run(folder).load()
    assert here.attn_implementation is here.float32_matmul_precision is None  # where it is measured is told anew
    wrong = TrialConfig(**flags | {"env": "textenv/Toy-v0"} | dict.fromkeys(["model", "prompts", "reward"]))
    for unknown in (replace(config, attn_implementation="none"), replace(wrong, attn_implementation="none")):
        with pytest.raises(FlagError, match='attn_implementation="none"'):
            prepare(replace(unknown, out=tmp_path / "other"), "run", [])
        assert not (tmp_path / "other").exists()
    with pytest.raises(FlagError, match="sees what comes after"):  # what transformers names beside the others
        replace(config, attn_implementation="paged|eager").make_env()


def attention(model: Any) -> str:
    """The name of what it attends with."""
    name: str = model.config._attn_implementation
    return name


def test_an_adapter_on_a_bfloat16_reference(assets: Path) -> None:
    """The reference's weights are in bfloat16, the adapter's own in float32, and it learns."""
    from peft import LoraConfig

    env = make(stories(assets))
    reference: Any = get_mdp(env).reference
    reference.model.to(HALF)
    policy = TransformerPolicy.for_env(env, lora=LoraConfig(r=2, target_modules="all-linear")).cast(HALF)
    agent = REINFORCE(policy, env, n_episodes=8, seed=0)
    assert {p.dtype for p in agent.trained} == {torch.float32} and agent.master_weights.state() == []
    before = [p.detach().clone() for p in agent.trained]
    agent.learn(1)
    assert any(not p.equal(old) for p, old in zip(agent.trained, before, strict=True))
    assert reference.model.dtype == HALF
