"""The sampler whose step is recorded: what `write` writes, from tensors that keep their places."""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPTNeoConfig, MistralConfig, Qwen2Config
from transformers.utils import import_utils

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import GraphSampler, collect, new_generator, sample, sample_prompts
from agents.sampling.graph import LOOK_UP, CapturedStep
from experiments import trial
from experiments.config import TrialConfig
from experiments.errors import FlagError
from tests.helpers.models import CLOSE, DEVICES, ROWS, language_model
from tests.helpers.tasks import TRIAL
from textenv import get_mdp

WAITS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}  # for the device


COPIES = {"aten.lift_fresh.default", "aten.lift_fresh_copy.default"}  # of a number from the host


pytestmark = pytest.mark.usefixtures("uncompiled")


class Operations(TorchDispatchMode):
    """Counts what is asked of the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_it_writes_what_the_plain_loop_writes() -> None:
    """With the same random numbers the same texts and log-probabilities, prompts and answers of any length."""
    env, policy = language_model()
    both = [collect(env, policy, ROWS, generator=new_generator("cpu", 3), sampler=s) for s in (sample, GraphSampler())]
    assert both[0].input_ids.equal(both[1].input_ids) and both[0].mask.equal(both[1].mask)
    assert len(set(both[0].mask.sum(dim=1).tolist())) > 2
    assert torch.allclose(both[0].log_probs, both[1].log_probs, atol=CLOSE)
    other = collect(env, policy, ROWS, generator=new_generator("cpu", 4), sampler=sample)
    assert not torch.equal(both[0].prompt, other.prompt) or not both[0].input_ids.equal(other.input_ids)  # control


def test_it_goes_on_from_any_state() -> None:
    """Texts that have a part of their answers already, some more of it than others."""
    env, policy = language_model()
    mdp = get_mdp(env)
    texts = sample_prompts(mdp, ROWS, 1, new_generator("cpu", 0))
    for row, length in ((0, 3), (1, 1), (4, 11)):
        columns = slice(mdp.prompt_width, mdp.prompt_width + length)
        texts.input_ids[row, columns], texts.attention_mask[row, columns], texts.time[row] = 77, 1, length
    both = [
        collect(env, policy, ROWS, generator=new_generator("cpu", 3), start=texts, sampler=s)
        for s in (sample, GraphSampler())
    ]
    assert both[0].input_ids.equal(both[1].input_ids) and both[0].mask.equal(both[1].mask)
    assert torch.allclose(both[0].log_probs, both[1].log_probs, atol=CLOSE)
    assert not both[0].mask[4, :11].any() and both[0].mask[4, 11]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("separate_critic", [False, True])
def test_v_is_read_on_the_way(separate_critic: bool, device: str) -> None:
    """As the parallel pass reads it, without one; a separate critic is asked afterwards."""
    env, policy = language_model()
    if separate_critic:
        policy = TransformerPolicy(policy.model, separate_critic=True)
    torch.nn.init.normal_(policy.to(device).value_head.weight)
    asked, values = [], policy.values
    policy.values = lambda *texts: (asked.append(1), values(*texts))[1]  # type: ignore[method-assign]
    rollout = collect(env, policy, ROWS, generator=new_generator(device, 3), sampler=GraphSampler())
    assert len(asked) == separate_critic and rollout.values is not None
    with torch.no_grad():
        read = values(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((read - rollout.values)[rollout.mask].abs().max()) < 10 * CLOSE < rollout.values.std()
    assert not rollout.values[~rollout.mask].any()


def test_it_stops_soon_after_the_last_text_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before the longest text that there may be."""
    env, policy = language_model(ends=150, max_new_tokens=200, positions=210)
    sampler, steps = GraphSampler(), []
    step = CapturedStep._step
    monkeypatch.setattr(CapturedStep, "_step", lambda self: (steps.append(1), step(self))[1])
    rollout = collect(env, policy, ROWS, generator=new_generator("cpu", 0), sampler=sampler)
    assert rollout.num_tokens <= len(steps) + 1 < rollout.num_tokens + LOOK_UP < 100


def test_what_has_changed_place_is_recorded_anew() -> None:
    """Weights of another dtype, another temperature; weights that only learn are not."""
    env, policy = language_model()
    mdp, generator, sampler = get_mdp(env), new_generator("cpu", 0), GraphSampler()

    def tape(count: int = 4) -> Any:
        sampler(policy, mdp, sample_prompts(mdp, count, 1, generator), generator)
        return sampler.tape

    first = tape()
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)
    assert tape() is first
    policy.temperature = 0.9
    second = tape()
    policy.cast(torch.float64)
    third = tape()
    policy.double()
    assert len({id(made) for made in (first, second, third, tape())}) == 4


def test_one_cache_is_there_at_a_time() -> None:
    """The one before is gone when another is made, which might not fit beside it."""
    env, policy = language_model()
    sampler = GraphSampler()
    caches: list[weakref.ref[torch.Tensor]] = []
    for temperature in (1.0, 0.9, 0.8):
        policy.temperature = temperature
        collect(env, policy, 4, generator=new_generator("cpu", 0), sampler=sampler)
        assert sampler.tape is not None
        caches.append(weakref.ref(sampler.tape.cache.layers[0].keys))
    assert [cache() is not None for cache in caches] == [False, False, True]


def test_another_number_of_texts_is_left_to_the_plain_loop() -> None:
    """One tape, whatever REINFORCE's continuations ask for in between: the next batch of answers goes on with it."""
    env, policy = language_model()
    agent = REINFORCE(policy, env, n_episodes=4, num_generations=2, credit="q", num_continuations=2, seed=0)
    recorded, asked, tapes = GraphSampler(), [], []

    def sampler(policy: Any, mdp: Any, texts: Any, generator: Any) -> Any:
        written = recorded(policy, mdp, texts, generator)
        asked.append(len(texts))
        tapes.append(recorded.tape)
        return written

    agent.sampler = sampler
    agent.learn(800)
    assert len(set(asked)) > 2 and asked.count(4) > 2
    assert tapes[0] is not None and all(tape is tapes[0] for tape in tapes)


@pytest.mark.parametrize("device", DEVICES)
def test_a_tape_draws_from_any_generator(device: str) -> None:
    """What it draws, and on a CPU where it leaves the generator, is as in the plain loop; played twice it goes on."""
    env, policy = language_model()
    policy.to(device)
    mdp, sampler = get_mdp(env), GraphSampler()
    tapes, left = [], []
    for seed in (3, 4):
        texts = sample_prompts(mdp, ROWS, 1, new_generator("cpu", 0))
        plain, played = new_generator(device, seed), new_generator(device, seed)
        expected, found = sample(policy, mdp, texts, plain), sampler(policy, mdp, texts, played)
        assert found.input_ids.equal(expected.input_ids)
        tapes.append(sampler.tape)
        left.append((plain.get_state(), played.get_state(), found.input_ids))
        assert not sampler(policy, mdp, texts, played).input_ids.equal(found.input_ids)
    assert tapes[0] is tapes[1] and not left[0][2].equal(left[1][2])
    assert not left[0][0].equal(left[1][0])
    assert device == "cuda" or all(one.equal(other) for one, other, _ in left)  # a GPU is looked at now and then


SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "recorded"),
    [
        (MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=4096), False),
        (MistralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, sliding_window=None), True),
        (GPTNeoConfig(**SMALL, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]]), False),
        (Qwen2Config(**SMALL, intermediate_size=48, num_key_value_heads=2), True),
    ],
    ids=["mistral", "mistral without a window", "gpt-neo", "qwen2"],
)
def test_what_cannot_be_recorded_is_left_to_the_plain_loop(config: Any, recorded: bool) -> None:
    """Caches that depend on numbers of Python's, which a recording would keep; either way it is pi that is sampled."""
    torch.manual_seed(0)
    env, _ = language_model(reference=AutoModelForCausalLM.from_config(config).eval())
    policy = TransformerPolicy.for_env(env)
    sampler = GraphSampler()
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0), sampler=sampler)
    assert (sampler.tape is not None) == recorded
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE


def test_inference_mode_outside_changes_nothing() -> None:
    """What a tape keeps is written to again outside of it."""
    env, policy = language_model()
    sampler, found = GraphSampler(), []
    for context in (torch.inference_mode(), torch.no_grad()):
        with context:
            found.append(collect(env, policy, 4, generator=new_generator("cpu", 0), sampler=sampler, values=False))
    assert found[0].input_ids.equal(found[1].input_ids)


def check_recording_is_kept(device: str) -> None:
    """One tape for all updates; after each the weights are read as they have become."""
    env, policy = language_model()
    sampler = GraphSampler()
    agent = PPO(policy.to(device), env, n_episodes=ROWS, n_epochs=1, learning_rate=0.01, seed=0)
    agent.sampler = sampler
    tapes, seen = [], []

    def watch(agent: Any, rollout: Any, metrics: Any) -> None:
        tapes.append(sampler.tape)
        seen.append(metrics)

    first = agent.collect()
    agent.learn(600, callback=watch)
    assert len(tapes) > 3 and all(tape is tapes[0] for tape in tapes)
    assert all(metrics["val/ratio_error_max"] < 10 * CLOSE for metrics in seen)
    with torch.no_grad():  # control: the weights have moved
        now = policy.evaluate_actions(first.input_ids, first.attention_mask, first.num_tokens).log_probs
    assert float((now - first.log_probs)[first.mask].abs().max()) > 0.1


def test_the_recording_is_kept_and_the_weights_are_not() -> None:
    """A step that is called; compiled it is in test_compile.py."""
    check_recording_is_kept("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_writes_what_the_policy_says() -> None:
    """The same, played back; and each step draws numbers of its own, as often as they should come."""
    check_recording_is_kept("cuda")
    env, policy = language_model()
    policy.to("cuda")
    for sampler in (sample, GraphSampler()):
        rollout = collect(env, policy, 4096, generator=new_generator("cuda", 0), sampler=sampler)
        repeats = (rollout.tokens[:, 1:] == rollout.tokens[:, :-1])[rollout.mask[:, 1:]].float().mean()
        with torch.no_grad():
            forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
        surprise = -rollout.log_probs.sum() / rollout.mask.sum()
        assert float((forced - rollout.log_probs)[rollout.mask].abs().max()) < 10 * CLOSE
        if sampler is sample:
            expected = repeats, surprise, rollout.mask.sum(dim=1).float().mean()
    assert float(repeats) == pytest.approx(float(expected[0]), abs=0.01)
    assert float(surprise) == pytest.approx(float(expected[1]), abs=0.05)
    assert float(rollout.mask.sum(dim=1).float().mean()) == pytest.approx(float(expected[2]), abs=0.3)


def test_a_step_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operation of a step waits for the device, or brings a number to it; those of the plain loop do (control)."""
    env, policy = language_model()
    sampler, generator = GraphSampler(), new_generator("cpu", 0)
    collect(env, policy, ROWS, generator=generator, sampler=sampler)
    assert sampler.tape is not None
    # transformers leaves its own looks at the mask out while a graph is captured
    monkeypatch.setattr(import_utils, "is_cuda_stream_capturing", lambda: True)
    with torch.no_grad():
        sampler.tape._begin(sample_prompts(get_mdp(env), ROWS, 1, generator))
        with Operations() as recorded:
            sampler.tape.step()
        with Operations() as plain:
            collect(env, policy, ROWS, generator=generator)
    assert recorded.seen["aten.addmm.default"] > 4
    assert not (WAITS | COPIES) & set(recorded.seen)
    assert WAITS & set(plain.seen)


def test_a_flag_says_what_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sampler has its name; agents of other libraries have their own, and refuse it."""
    used: list[str] = []

    def watched(name: str, call: Any) -> Any:
        return lambda *args: (used.append(name), call(*args))[1]

    for name, function in (("loop", "sample"), ("generate", "generate_sampler")):
        monkeypatch.setattr(trial, function, watched(name, getattr(trial, function)))
    monkeypatch.setattr(GraphSampler, "__call__", watched("graph", GraphSampler.__call__))
    for name in ("loop", "generate", "graph"):
        config = TrialConfig(**TRIAL, sampler=name, out=tmp_path / name)  # type: ignore[arg-type]
        _, folder, _ = trial.prepare(config, name, [config])
        used.clear()
        trial.run_trial(config, folder, folder / trial.INITIAL)
        assert set(used) == {name}
    with pytest.raises(FlagError, match="--sampler generate is for our agents, not for sb3-a2c"):
        TrialConfig(**TRIAL, sampler="generate", agent="sb3-a2c")
