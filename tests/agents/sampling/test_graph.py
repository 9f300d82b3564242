"""The graph sampler: the same completions as the loop sampler, from tensors at fixed addresses."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPTNeoConfig, MistralConfig, Qwen2Config
from transformers.utils import import_utils

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import GraphSampler, collect, new_generator, sample, sample_prompts
from agents.sampling.graph import CHECK_INTERVAL, CapturedStep
from tests.helpers.models import CLOSE, DEVICES, ROWS, language_model
from textenv import get_mdp

SYNCHRONISING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}
HOST_COPIES = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default"}  # of a number from the host


pytestmark = pytest.mark.usefixtures("uncompiled")


class Operations(TorchDispatchMode):
    """Counts the operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts one operation and runs it."""
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_it_samples_like_the_loop() -> None:
    """The same random numbers give the same completions and log-probabilities, for prompts of different lengths."""
    env, policy = language_model()
    both = [collect(env, policy, ROWS, generator=new_generator("cpu", 3), sampler=s) for s in (sample, GraphSampler())]
    assert both[0].input_ids.equal(both[1].input_ids) and both[0].mask.equal(both[1].mask)
    assert len(set(both[0].mask.sum(dim=1).tolist())) > 2
    assert torch.allclose(both[0].log_probs, both[1].log_probs, atol=CLOSE)
    other = collect(env, policy, ROWS, generator=new_generator("cpu", 4), sampler=sample)
    assert not torch.equal(both[0].prompt, other.prompt) or not both[0].input_ids.equal(other.input_ids)  # control


def test_it_starts_in_any_state() -> None:
    """Initial states with completions of different lengths."""
    env, policy = language_model()
    mdp = get_mdp(env)
    state = sample_prompts(mdp, ROWS, 1, new_generator("cpu", 0))
    for row, length in ((0, 3), (1, 1), (4, 11)):
        columns = slice(mdp.prompt_width, mdp.prompt_width + length)
        state.input_ids[row, columns], state.attention_mask[row, columns], state.time[row] = 77, 1, length
    both = [
        collect(env, policy, ROWS, generator=new_generator("cpu", 3), start=state, sampler=s)
        for s in (sample, GraphSampler())
    ]
    assert both[0].input_ids.equal(both[1].input_ids) and both[0].mask.equal(both[1].mask)
    assert torch.allclose(both[0].log_probs, both[1].log_probs, atol=CLOSE)
    assert not both[0].mask[4, :11].any() and both[0].mask[4, 11]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("separate_critic", [False, True])
def test_the_step_computes_v(separate_critic: bool, device: str) -> None:
    """The values of the parallel pass, which is needed only for a separate critic."""
    env, policy = language_model()
    if separate_critic:
        policy = TransformerPolicy(policy.model, separate_critic=True)
    torch.nn.init.normal_(policy.to(device).value_head.weight)
    passes, values = [], policy.values
    policy.values = lambda *inputs: (passes.append(1), values(*inputs))[1]  # type: ignore[method-assign]
    rollout = collect(env, policy, ROWS, generator=new_generator(device, 3), sampler=GraphSampler())
    assert len(passes) == separate_critic and rollout.values is not None
    with torch.no_grad():
        expected = values(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((expected - rollout.values)[rollout.mask].abs().max()) < 10 * CLOSE < rollout.values.std()
    assert not rollout.values[~rollout.mask].any()


def test_it_stops_soon_after_the_last_completion_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before max_new_tokens."""
    env, policy = language_model(ends=150, max_new_tokens=200, positions=210)
    sampler, steps = GraphSampler(), []
    step = CapturedStep._step
    monkeypatch.setattr(CapturedStep, "_step", lambda self: (steps.append(1), step(self))[1])
    rollout = collect(env, policy, ROWS, generator=new_generator("cpu", 0), sampler=sampler)
    assert rollout.num_tokens <= len(steps) + 1 < rollout.num_tokens + CHECK_INTERVAL < 100


def test_weights_at_other_addresses_are_captured_again() -> None:
    """Weights of another dtype, and another temperature; weights that are updated in place are not."""
    env, policy = language_model()
    mdp, generator, sampler = get_mdp(env), new_generator("cpu", 0), GraphSampler()

    def captured(count: int = 4) -> Any:
        sampler(policy, mdp, sample_prompts(mdp, count, 1, generator), generator)
        return sampler.captured

    first = captured()
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)
    assert captured() is first
    policy.temperature = 0.9
    second = captured()
    policy.cast(torch.float64)
    third = captured()
    policy.double()
    assert len({id(each) for each in (first, second, third, captured())}) == 4


def test_there_is_one_kv_cache_at_a_time() -> None:
    """The old cache is freed before a new one is allocated, since memory might not hold both."""
    env, policy = language_model()
    sampler = GraphSampler()
    caches: list[weakref.ref[torch.Tensor]] = []
    for temperature in (1.0, 0.9, 0.8):
        policy.temperature = temperature
        collect(env, policy, 4, generator=new_generator("cpu", 0), sampler=sampler)
        assert sampler.captured is not None
        caches.append(weakref.ref(sampler.captured.cache.layers[0].keys))
    assert [cache() is not None for cache in caches] == [False, False, True]


def test_the_loop_serves_other_numbers_of_rows() -> None:
    """As of REINFORCE's continuations; the next batch of completions uses the same captured step again."""
    env, policy = language_model()
    agent = REINFORCE(policy, env, n_episodes=4, num_generations=2, credit="q", num_continuations=2, seed=0)
    graph_sampler, num_rows, captured = GraphSampler(), [], []

    def sampler(policy: Any, mdp: Any, state: Any, generator: Any) -> Any:
        generation = graph_sampler(policy, mdp, state, generator)
        num_rows.append(len(state))
        captured.append(graph_sampler.captured)
        return generation

    agent.sampler = sampler
    agent.learn(800)
    assert len(set(num_rows)) > 2 and num_rows.count(4) > 2
    assert captured[0] is not None and all(each is captured[0] for each in captured)


@pytest.mark.parametrize("device", DEVICES)
def test_a_captured_step_draws_from_any_generator(device: str) -> None:
    """The numbers of the loop sampler, and on a CPU the same state afterwards; a second call samples differently."""
    env, policy = language_model()
    policy.to(device)
    mdp, sampler = get_mdp(env), GraphSampler()
    captured, after = [], []
    for seed in (3, 4):
        state = sample_prompts(mdp, ROWS, 1, new_generator("cpu", 0))
        loop, graph = new_generator(device, seed), new_generator(device, seed)
        expected, found = sample(policy, mdp, state, loop), sampler(policy, mdp, state, graph)
        assert found.input_ids.equal(expected.input_ids)
        captured.append(sampler.captured)
        after.append((loop.get_state(), graph.get_state(), found.input_ids))
        assert not sampler(policy, mdp, state, graph).input_ids.equal(found.input_ids)
    assert captured[0] is captured[1] and not after[0][2].equal(after[1][2])
    assert not after[0][0].equal(after[1][0])
    # on a GPU the end is checked only now and then, so more numbers are drawn
    assert device == "cuda" or all(one.equal(other) for one, other, _ in after)


SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "is_captured"),
    [
        (MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=4096), False),
        (MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=None), True),
        (GPTNeoConfig(**SMALL, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]), False),
        (Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2), True),
    ],
    ids=["mistral", "mistral without a window", "gpt-neo", "qwen2"],
)
def test_the_loop_serves_models_that_cannot_be_captured(config: Any, is_captured: bool) -> None:
    """Caches that depend on Python numbers, which a capture would freeze; in all cases the samples are from pi."""
    torch.manual_seed(0)
    env, _ = language_model(reference=AutoModelForCausalLM.from_config(config).eval())
    policy = TransformerPolicy.for_env(env)
    sampler = GraphSampler()
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0), sampler=sampler)
    assert (sampler.captured is not None) == is_captured
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE


def test_it_may_be_called_in_inference_mode() -> None:
    """The tensors of a captured step can be updated outside inference mode later."""
    env, policy = language_model()
    sampler, found = GraphSampler(), []
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            found.append(collect(env, policy, 4, generator=new_generator("cpu", 0), sampler=sampler, values=False))
    assert found[0].input_ids.equal(found[1].input_ids)


def check_capture_is_kept(device: str) -> None:
    """Checks that one captured step serves all updates, and uses the current weights after each."""
    env, policy = language_model()
    sampler = GraphSampler()
    agent = PPO(policy.to(device), env, n_episodes=ROWS, n_epochs=1, learning_rate=0.01, seed=0)
    agent.sampler = sampler
    captured, updates = [], []

    def record(agent: Any, rollout: Any, metrics: Any) -> None:
        captured.append(sampler.captured)
        updates.append(metrics)

    first = agent.collect()
    agent.learn(600, callback=record)
    assert len(captured) > 3 and all(each is captured[0] for each in captured)
    assert all(metrics["val/ratio_error_max"] < 10 * CLOSE for metrics in updates)
    with torch.no_grad():  # control: the weights have changed
        now = policy.evaluate_actions(first.input_ids, first.attention_mask, first.num_tokens).log_probs
    assert float((now - first.log_probs)[first.mask].abs().max()) > 0.1


def test_updates_of_the_weights_need_no_new_capture() -> None:
    """With the step in eager mode; test_compile.py has the compiled one."""
    check_capture_is_kept("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_samples_from_the_policy() -> None:
    """The same with a CUDA graph; each replay uses new random numbers, so the statistics equal the loop sampler's."""
    check_capture_is_kept("cuda")
    env, policy = language_model()
    policy.to("cuda")
    for sampler in (sample, GraphSampler()):
        rollout = collect(env, policy, 4096, generator=new_generator("cuda", 0), sampler=sampler)
        repeats = (rollout.tokens[:, 1:] == rollout.tokens[:, :-1])[rollout.mask[:, 1:]].float().mean()
        with torch.no_grad():
            forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
        entropy = -rollout.log_probs.sum() / rollout.mask.sum()
        assert float((forced - rollout.log_probs)[rollout.mask].abs().max()) < 10 * CLOSE
        if sampler is sample:
            expected = repeats, entropy, rollout.mask.sum(dim=1).float().mean()
    assert float(repeats) == pytest.approx(float(expected[0]), abs=0.01)
    assert float(entropy) == pytest.approx(float(expected[1]), abs=0.05)
    assert float(rollout.mask.sum(dim=1).float().mean()) == pytest.approx(float(expected[2]), abs=0.3)


def test_a_step_can_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation of a step synchronises or copies from the host; those of the loop sampler do (control)."""
    env, policy = language_model()
    sampler, generator = GraphSampler(), new_generator("cpu", 0)
    collect(env, policy, ROWS, generator=generator, sampler=sampler)
    assert sampler.captured is not None
    # transformers skips its own checks of the mask while a graph is captured
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    with torch.no_grad():
        sampler.captured._prefill(sample_prompts(get_mdp(env), ROWS, 1, generator))
        with Operations() as step:
            sampler.captured.step()
        with Operations() as loop:
            collect(env, policy, ROWS, generator=generator)
    assert step.counts["aten.addmm.default"] > 4
    assert not (SYNCHRONISING | HOST_COPIES) & set(step.counts)
    assert SYNCHRONISING & set(loop.counts)
