"""torch.compile for the update and for a step of sampling: the same numbers as in eager mode, compiled only once."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from peft import LoraConfig
from torch._dynamo.utils import counters
from transformers import LlamaConfig, LlamaForCausalLM

from agents import PPO
from agents.policy import TransformerPolicy
from agents.sampling import Generation, GraphSampler, Rollout, new_generator, sample, sample_prompts
from tests.helpers.models import CLOSE, ROWS, WORST, check_frequencies, half_stories, language_model
from tests.helpers.tasks import make, stories
from textenv import get_mdp

TAJ = "textenv/TajMahal-v0"  # most tokens are masked
TOLERANCE = 1e-5  # of the largest number in a gradient


def gradients(agent: PPO, rollout: Rollout, size: int) -> list[dict[str, torch.Tensor]]:
    """Gradients of PPO's loss by parameter name, one dict per minibatch of this size; the weights stay the same."""
    batch = agent.batch(rollout)
    found = []
    for rows in torch.arange(len(rollout)).split(size):
        agent.backward(batch, rows)
        found.append({name: p.grad.clone() for name, p in agent.policy.named_parameters() if p.grad is not None})
    return found


def largest_error(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> float:
    """The largest difference between two gradients, divided by the largest number in the second."""
    return max(
        max(float((one[name] - other[name]).abs().max()) for name in other)
        / max(float(number.abs().max()) for number in other.values())
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_compiled_gradient_is_the_eager_one(separate_critic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked completions of several lengths, in minibatches of two sizes; later shapes cause no new compilation.

    The eager pass uses prefix sharing.
    """
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_TOKENS", 1)
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_FRACTION", 0)
    env = gym.make(TAJ)
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic)
    agent = PPO(policy, env, n_episodes=20, batch_size=8, learning_rate=0.02, seed=0)
    agent.learn(1)  # so that values and ratios are not trivial
    rollouts = [agent.collect() for _ in range(3)]
    rollouts = [replace(rollout, log_probs=rollout.log_probs + 0.1) for rollout in rollouts]
    eager = [gradients(agent, rollout, 8) for rollout in rollouts]
    counters.clear()
    agent.policy.compile()
    for rollout, expected in zip(rollouts, eager, strict=True):
        assert largest_error(gradients(agent, rollout, 8), expected) < TOLERANCE
    assert len({rollout.input_ids.shape for rollout in rollouts}) > 1
    networks = 1 + separate_critic  # torch compiles each once more where two sizes happened to be equal
    assert networks <= counters["stats"]["unique_graphs"] <= 2 * networks
    assert not counters["graph_break"]
    assert largest_error(gradients(agent, rollouts[0], 8), eager[1]) > 1e-2  # control: the gradient of another rollout


SLOW = ["llama", "adapter"]

# -- a step of sampling ------------------------------------------------------------------------------------------------


def sampled(env: Any, policy: TransformerPolicy, sampler: Any, seed: int) -> Generation:
    """Samples so few rows that the loop sampler drops none, so that both draw the same random numbers."""
    state = sample_prompts(get_mdp(env), ROWS, 1, new_generator("cpu", seed))
    found: Generation = sampler(policy, get_mdp(env), state, new_generator("cpu", seed))
    return found


@pytest.mark.parametrize("kind", ["large vocabulary", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def test_a_compiled_step_samples_like_the_loop(kind: str, assets: Path) -> None:
    """The same random numbers give the same completions of all lengths, also after updates of the weights."""
    torch.manual_seed(0)
    if kind == "large vocabulary":
        env, policy = language_model()
    else:
        env = make(stories(assets, max_new_tokens=16))
        lora = LoraConfig(r=4, target_modules="all-linear") if kind == "adapter" else None
        policy = TransformerPolicy.for_env(env, lora=lora)
    torch.nn.init.normal_(policy.value_head.weight)
    sampler, captured, ids = GraphSampler(), [], []
    for seed in range(3):
        expected, found = (sampled(env, policy, each, seed) for each in (sample, sampler))
        assert found.input_ids.equal(expected.input_ids) and found.attention_mask.equal(expected.attention_mask)
        torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=0, atol=10 * CLOSE)
        with torch.no_grad():
            values = policy.values(found.input_ids, found.attention_mask, get_mdp(env).max_new_tokens)
        real = found.log_probs != 0
        assert found.values is not None and (values - found.values)[real].abs().max() < 1e-3 * values.std()
        captured.append(sampler.captured)
        ids.append(found.input_ids)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            policy.value_head.weight.normal_()
    assert all(each is captured[0] for each in captured)
    assert not ids[0].equal(ids[1])  # control
    updated = sampled(env, policy, sample, 2)
    assert float((updated.log_probs - found.log_probs).abs().max()) > 1e-2  # control: the weights have changed


def test_a_model_that_torch_cannot_compile_is_an_error() -> None:
    """This one reads a number back from the device; the message has the model's name, and what to do."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    )
    env, policy = language_model(reference=LlamaForCausalLM(config).eval())
    with pytest.raises(ValueError, match="torch cannot compile LlamaForCausalLM; sample with the loop instead: "):
        sampled(env, policy, GraphSampler(), 0)
    sampled(env, policy, sample, 0)


@pytest.mark.slow
def test_it_is_compiled_as_often_as_needed() -> None:
    """More often than torch compiles one function; each KV cache is freed before the next one is allocated."""
    env, policy = language_model()
    sampler = GraphSampler()
    caches: list[weakref.ref[torch.Tensor]] = []
    for temperature in torch.linspace(0.5, 1.5, 10).tolist():
        policy.temperature = temperature
        assert sampled(env, policy, sampler, 0).input_ids.equal(sampled(env, policy, sample, 0).input_ids)
        assert sampler.captured is not None
        caches.append(weakref.ref(sampler.captured.cache.layers[0].keys))
    assert [cache() is not None for cache in caches] == [False] * 9 + [True]


@pytest.mark.slow
def test_a_compiled_step_in_bfloat16(assets: Path) -> None:
    """Its log-probabilities are those of the update's pass up to rounding, over several updates."""
    env, policy = half_stories(assets, "cpu")
    agent = PPO(policy, env, n_epochs=1, n_episodes=32, seed=0)
    agent.sampler = GraphSampler()
    errors: list[float] = []
    agent.learn(2000, callback=lambda agent, rollout, metrics: errors.append(metrics["val/ratio_error_max"]))
    assert len(errors) > 2 and max(errors) < WORST


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["open", "model"])
def test_a_compiled_step_samples_from_pi(kind: str) -> None:
    """The chi-square test of test_loop.py, over thousands of completions in one batch."""
    check_frequencies(GraphSampler(), kind)
