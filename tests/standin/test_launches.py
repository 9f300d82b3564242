"""How many kernels sampling, scoring and an update launch, and how often the host waits for them."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from agents import GRPO, PPO, REINFORCE, RLOO, ActorCritic, PathConsistency
from agents.policy import TransformerPolicy
from agents.sampling import collect, loop, new_generator, sample, sample_prompts
from tests.helpers.models import CLOSE, language_model
from tests.helpers.standin import DEVICE, Counts, counting
from textenv import get_mdp
from textenv.lm import CachedDecoder, cache_argument, pack_left, position_ids
from textenv.lm.attention_masks import takes_masks

SIZES: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": None}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
KINDS = [PPO, ActorCritic, REINFORCE, RLOO, GRPO, PathConsistency]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def reference(name: str) -> Any:
    """A random model; None is the default of `language_model`, a GPT-2."""
    torch.manual_seed(0)
    makers = {
        "gpt2": lambda: None,
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, eos_token_id=None)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, **HEADS, eos_token_id=None, sliding_window=4)),
        "bloom": lambda: BloomForCausalLM(BloomConfig(**SIZES, n_head=4, eos_token_id=None)),
    }
    return makers[name]()


def on_device(name: str = "gpt2", device: str = DEVICE, **settings: Any) -> tuple[Any, TransformerPolicy]:
    """A task and a policy there; no end token by default, so that all completions have `max_new_tokens`."""
    env, policy = language_model(reference=reference(name), **{"ends": 0, "positions": 64} | settings)
    get_mdp(env).reference.model.to(device)
    return env, policy.to(device)


class Sampled(NamedTuple):
    """What a call of the loop sampler launches beyond its first `before` tokens, by token, and all that it waits."""

    kernels: float
    waits: int


def sampled(name: str, before: int, tokens: int, count: int = 6) -> Sampled:
    """Counts of sampling, without the prefill."""
    found = list[Counts]()
    for length in (before, tokens):
        env, policy = on_device(name, max_new_tokens=length)
        state = sample_prompts(get_mdp(env), count, 1, new_generator(DEVICE, 0))
        with torch.no_grad():
            sample(policy, get_mdp(env), state, new_generator(DEVICE, 0))  # what is found out once about the model
            with counting() as counts:
                sample(policy, get_mdp(env), state, new_generator(DEVICE, 1))
        found.append(counts)
    return Sampled((found[1].kernels - found[0].kernels) / (tokens - before), found[1].waits)


@torch.no_grad()
def model_alone(name: str, steps: int, count: int = 6) -> Sampled:
    """Counts of decode steps of transformers' model with its own cache, which is given tokens, mask and positions."""
    env, policy = on_device(name)
    state = sample_prompts(get_mdp(env), count, 1, new_generator(DEVICE, 0))
    ids, mask = pack_left(*(torch.as_tensor(x, device=DEVICE) for x in (state.input_ids, state.attention_mask)))
    mask, token = mask.long(), ids[:, -1:]
    cache, place = DynamicCache(config=policy.model.config), cache_argument(policy.model)
    inputs: dict[str, Any] = {place: cache, "use_cache": True, "logits_to_keep": 1}
    policy.model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), **inputs)
    masks = [torch.nn.functional.pad(mask, (0, step + 1), value=1) for step in range(steps)]
    positions = [position_ids(each)[:, -1:] for each in masks]
    with counting() as counts:
        for step in range(steps):
            policy.model(input_ids=token, attention_mask=masks[step], position_ids=positions[step], **inputs)
    return Sampled(counts.kernels / steps, counts.waits)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_decode_step_launches_what_the_model_launches_and_little_more(name: str) -> None:
    """At most 1.15 times the kernels, though the models have two layers; the model alone waits in every step."""
    ours, alone = sampled(name, 8, 24), model_alone(name, 16)
    assert ours.kernels <= 1.15 * alone.kernels, (ours, alone)
    assert alone.waits == 16


@pytest.mark.parametrize("tokens", [8, 9, 32])
def test_the_loop_waits_once_in_eight_steps(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in the prefill, nor after the last step. Control: a check at each step."""
    assert sampled("llama", 1, tokens).waits == (tokens - 1) // 8
    monkeypatch.setattr(loop, "CHECK_INTERVAL", 1)
    assert sampled("llama", 1, tokens).waits == tokens - 1


def decode_steps(monkeypatch: pytest.MonkeyPatch, device: str, count: int, **settings: Any) -> tuple[Any, list[int]]:
    """A rollout, and the number of rows in each decode step."""
    rows, decode_step = list[int](), CachedDecoder.decode_step

    def counted(self: CachedDecoder, tokens: Any, live: Any = None) -> Any:
        rows.append(len(tokens))
        return decode_step(self, tokens, live)

    env, policy = on_device("llama", device, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(CachedDecoder, "decode_step", counted)
        return collect(env, policy, count, generator=new_generator(device, 1)), rows


def test_completions_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All end before the limit: on the CPU the loop stops then, on the device at the next check."""
    settings = {"ends": 80, "max_new_tokens": 40}
    (expected, rows), (found, more) = (decode_steps(monkeypatch, device, 12, **settings) for device in ("cpu", DEVICE))
    assert expected.num_tokens - 1 == len(rows) < len(more) < len(rows) + 8 and (len(more) + 1) % 8 == 0
    for name in ("input_ids", "attention_mask", "mask", "stopped", "lengths"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name
    for name in ("log_probs", "ref_log_probs", "values", "rewards"):
        assert torch.allclose(getattr(found, name).cpu(), getattr(expected, name), atol=CLOSE), name
    assert not bool(found.tokens[~found.mask].any()) and not bool(found.log_probs[~found.mask].any())


def test_finished_rows_are_dropped_at_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the log-probabilities of the rows that are left are those of one parallel pass."""
    rollout, rows = decode_steps(monkeypatch, DEVICE, 96, ends=30, max_new_tokens=32)
    changes = [step + 1 for step in range(1, len(rows)) if rows[step] != rows[step - 1]]
    assert len(changes) >= 2 and all((step - 1) % 8 == 7 for step in changes), rows
    _, policy = on_device("llama", ends=30, max_new_tokens=32)
    with torch.no_grad():
        forced = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert float((forced.log_probs - rollout.log_probs)[rollout.mask].abs().max()) < CLOSE


MASKS = {"gpt2": True, "llama": True, "mistral": False, "bloom": False}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_made_for_models_that_take_them(name: str) -> None:
    """A window of attention, and positions that are made of the mask, need transformers' own; all sample alike."""
    rollouts = []
    for device in ("cpu", DEVICE):
        env, policy = on_device(name, device, max_new_tokens=8)
        rollouts.append(collect(env, policy, 8, generator=new_generator(device, 0)))
    assert takes_masks(policy.model) is takes_masks(policy.trunk) is MASKS[name]
    expected, found = rollouts
    assert torch.equal(found.input_ids.cpu(), expected.input_ids)
    for numbers in ("log_probs", "ref_log_probs", "values"):
        assert torch.allclose(getattr(found, numbers).cpu(), getattr(expected, numbers), atol=CLOSE)


def scoring_waits(count: int, tokens: int, **settings: Any) -> tuple[int, int]:
    """Waits and uploads of `collect`, without those of the loop."""
    env, policy = on_device(max_new_tokens=tokens, **settings)
    collect(env, policy, 2, generator=new_generator(DEVICE, 0))
    with counting() as counts:
        collect(env, policy, count, num_generations=2, generator=new_generator(DEVICE, 0))
    return counts.waits - (tokens - 1) // 8, counts.uploads


def test_scoring_waits_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of completions, their length, and the passes in which the reference reads them."""
    expected = scoring_waits(4, 6)
    assert expected[0] <= 10
    for count, tokens in ((96, 6), (4, 40), (96, 40)):
        assert scoring_waits(count, tokens) == expected
    monkeypatch.setattr("textenv.references.causal_lm.MAX_LOGITS", 300 * 40 * 8)
    assert scoring_waits(96, 40) == expected


def update_waits(kind: Any, minibatches: int, **settings: Any) -> Counts:
    """Counts of an update with so many minibatches, of 16 completions."""
    env, policy = on_device(max_new_tokens=6)
    epochs = {} if kind in (REINFORCE, ActorCritic) else {"n_epochs": minibatches}
    agent = kind(policy, env, n_episodes=16, seed=0, **epochs, **settings)
    agent.learn(1)  # the first one makes the optimizer
    with warnings.catch_warnings(), counting() as counts:
        warnings.simplefilter("ignore")
        agent.learn(1, reset_num_timesteps=False)
    return counts


@every_kind
def test_a_minibatch_waits_once_and_a_micro_batch_never(kind: Any) -> None:
    """Gradient norm, losses and KL are read together. Nor does one wait for the queue with a copy to the device."""
    settings: dict[str, Any] = {"target_kl": 1e6} if kind in (PPO, RLOO, GRPO) else {}
    if kind is PathConsistency:  # whole groups
        settings["num_generations"] = 4
    micro = {"micro_batch_size": 4}
    few, more = update_waits(kind, 1, **settings), update_waits(kind, 1, **settings, **micro)
    assert (more.waits, more.uploads) == (few.waits, few.uploads), more.wait_lines - few.wait_lines
    if kind not in (REINFORCE, ActorCritic):
        many = update_waits(kind, 5, **settings, **micro)
        assert many.waits - few.waits <= 4, many.wait_lines - few.wait_lines
        assert many.uploads == few.uploads, many.upload_lines - few.upload_lines


def test_the_control_of_waits_sees_a_number_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that reads a number of each micro-batch."""

    class Reading(PPO):
        def losses(self, batch: Any) -> Any:
            float(batch.advantages.sum())
            return super().losses(batch)

    few, more = update_waits(Reading, 1), update_waits(Reading, 1, micro_batch_size=4)
    assert more.waits - few.waits == 3
