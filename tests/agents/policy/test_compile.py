"""The update's pass, and a step of sampling, by kernels of torch.compile: the same numbers, kernels made once."""

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
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.trial import INITIAL, _agent, prepare, run_trial
from tests.helpers.models import CLOSE, ROWS, WORST, check_frequencies, half_stories, language_model
from tests.helpers.tasks import TRIAL, make, stories
from textenv import get_mdp

TAJ = "textenv/TajMahal-v0"  # most words are masked
TOLERANCE = 1e-5  # of the largest number in a gradient


def gradients(agent: PPO, rollout: Rollout, size: int) -> list[dict[str, torch.Tensor]]:
    """Of PPO's loss, by parameter name, of each minibatch of so many answers; nothing is learned."""
    advantages, returns = agent.advantages(rollout)
    found = []
    for rows in torch.arange(len(rollout)).split(size):
        agent.backward(rows, lambda rows: agent.losses(rollout[rows], advantages[rows], returns[rows]))
        found.append({name: p.grad.clone() for name, p in agent.policy.named_parameters() if p.grad is not None})
    return found


def furthest(ours: list[dict[str, torch.Tensor]], theirs: list[dict[str, torch.Tensor]]) -> float:
    """The largest difference of two gradients, over the largest number of the second."""
    return max(
        max(float((one[name] - other[name]).abs().max()) for name in other)
        / max(float(number.abs().max()) for number in other.values())
        for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_gradient_is_the_plain_one(separate_critic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On answers of several lengths, masked, in minibatches of two sizes; no kernel is made for the later ones.

    The plain one reads what prompts have in common once.
    """
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_TOKENS", 1)
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_FRACTION", 0)
    env = gym.make(TAJ)
    policy = TransformerPolicy.for_env(env, separate_critic=separate_critic)
    agent = PPO(policy, env, n_episodes=20, batch_size=8, learning_rate=0.02, seed=0)
    agent.learn(1)  # so that values and ratios are not trivial
    rollouts = [agent.collect() for _ in range(3)]
    rollouts = [replace(rollout, log_probs=rollout.log_probs + 0.1) for rollout in rollouts]
    plain = [gradients(agent, rollout, 8) for rollout in rollouts]
    counters.clear()
    agent.policy.compile()
    for rollout, expected in zip(rollouts, plain, strict=True):
        assert furthest(gradients(agent, rollout, 8), expected) < TOLERANCE
    assert len({rollout.input_ids.shape for rollout in rollouts}) > 1
    networks = 1 + separate_critic  # of each torch looks again where two sizes happened to be equal
    assert networks <= counters["stats"]["unique_graphs"] <= 2 * networks
    assert not counters["graph_break"]
    assert furthest(gradients(agent, rollouts[0], 8), plain[1]) > 1e-2  # control: of other answers


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before anything is computed; the command tells it in a line."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    policy = TransformerPolicy.for_env(gym.make(TAJ))
    with pytest.raises(ValueError, match="needs a C.. compiler on a CPU, no-such-compiler is not there"):
        policy.compile()
    for flags in ({"compile": True}, {"sampler": "graph"}):
        config = TrialConfig(agent="ppo", out=tmp_path / "run", **flags)  # type: ignore[arg-type]
        with pytest.raises(FlagError, match="no-such-compiler is not there"):
            prepare(config, "run", [config])
        assert not (tmp_path / "run").exists()


def is_compiled(policy: Any) -> bool:
    """Whether calling it is."""
    return policy._compiled_call_impl is not None


@pytest.mark.slow
def test_a_trial_compiles(tmp_path: Path) -> None:
    """It learns the same; a loaded checkpoint is compiled too; agents of other libraries refuse."""
    reached = {}
    for compiled in (False, True):
        config = TrialConfig(**TRIAL, agent="grpo", compile=compiled, out=tmp_path / str(compiled))
        env = config.make_env()
        _, folder, policy = prepare(config, "run", [config])
        assert is_compiled(policy) == compiled
        reached[compiled] = run_trial(config, folder, folder / INITIAL)["objective"]
        assert is_compiled(_agent(config, env, folder, folder / INITIAL).policy) == compiled
    assert reached[True] == pytest.approx(reached[False], abs=1e-4)
    with pytest.raises(FlagError, match="--compile is for our agents, not for sb3-ppo"):
        TrialConfig(**TRIAL, agent="sb3-ppo", compile=True)


SLOW = ["llama", "adapter"]

# -- a step of sampling ------------------------------------------------------------------------------------------------


def written(env: Any, policy: TransformerPolicy, sampler: Any, seed: int) -> Generation:
    """So few texts that the plain loop leaves none out, and draws as many random numbers."""
    texts = sample_prompts(get_mdp(env), ROWS, 1, new_generator("cpu", seed))
    found: Generation = sampler(policy, get_mdp(env), texts, new_generator("cpu", seed))
    return found


@pytest.mark.parametrize("kind", ["many words", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def test_a_compiled_step_writes_what_the_plain_loop_writes(kind: str, assets: Path) -> None:
    """With the same random numbers the same texts, prompts and answers of any length, while the weights learn."""
    torch.manual_seed(0)
    if kind == "many words":
        env, policy = language_model()
    else:
        env = make(stories(assets, max_new_tokens=16))
        lora = LoraConfig(r=4, target_modules="all-linear") if kind == "adapter" else None
        policy = TransformerPolicy.for_env(env, lora=lora)
    torch.nn.init.normal_(policy.value_head.weight)
    sampler, tapes, texts = GraphSampler(), [], []
    for seed in range(3):
        expected, found = (written(env, policy, each, seed) for each in (sample, sampler))
        assert found.input_ids.equal(expected.input_ids) and found.attention_mask.equal(expected.attention_mask)
        torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=0, atol=10 * CLOSE)
        with torch.no_grad():
            values = policy.values(found.input_ids, found.attention_mask, get_mdp(env).max_new_tokens)
        real = found.log_probs != 0
        assert found.values is not None and (values - found.values)[real].abs().max() < 1e-3 * values.std()
        tapes.append(sampler.tape)
        texts.append(found.input_ids)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn(parameter.shape))
            policy.value_head.weight.normal_()
    assert all(tape is tapes[0] for tape in tapes)
    assert not texts[0].equal(texts[1])  # control
    assert float((written(env, policy, sample, 2).log_probs - found.log_probs).abs().max()) > 1e-2  # it has learned


def test_what_torch_cannot_compile_is_told() -> None:
    """A model that reads a number back; with its name, and what to do."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    )
    env, policy = language_model(reference=LlamaForCausalLM(config).eval())
    with pytest.raises(ValueError, match="torch cannot record LlamaForCausalLM; sample with the loop instead: "):
        written(env, policy, GraphSampler(), 0)
    written(env, policy, sample, 0)


@pytest.mark.slow
def test_it_is_compiled_as_often_as_it_must() -> None:
    """More often than torch compiles one function; of each the cache is gone when the next is made."""
    env, policy = language_model()
    sampler = GraphSampler()
    caches: list[weakref.ref[torch.Tensor]] = []
    for temperature in torch.linspace(0.5, 1.5, 10).tolist():
        policy.temperature = temperature
        assert written(env, policy, sampler, 0).input_ids.equal(written(env, policy, sample, 0).input_ids)
        assert sampler.tape is not None
        caches.append(weakref.ref(sampler.tape.cache.layers[0].keys))
    assert [cache() is not None for cache in caches] == [False] * 9 + [True]


@pytest.mark.slow
def test_a_compiled_step_in_bfloat16(assets: Path) -> None:
    """Its log-probabilities are those of the update's pass, but for rounding, over several updates."""
    env, policy = half_stories(assets, "cpu")
    agent = PPO(policy, env, n_epochs=1, n_episodes=32, seed=0)
    agent.sampler = GraphSampler()
    seen: list[float] = []
    agent.learn(2000, callback=lambda agent, rollout, metrics: seen.append(metrics["val/ratio_error_max"]))
    assert len(seen) > 2 and max(seen) < WORST


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["open", "model"])
def test_a_compiled_steps_texts_come_as_often_as_they_should(kind: str) -> None:
    """The chi-square test of every sampler, over thousands of texts at once."""
    check_frequencies(GraphSampler(), kind)
