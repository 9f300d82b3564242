"""Each setting of a policy, against the model called on one prefix at a time, and numpy."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from tests.helpers.tasks import log_softmax, make, random_reference, words

SETTINGS: list[dict[str, Any]] = [
    {},
    {"vocab_size": 4},
    {"vocab_size": 4, "temperature": 0.5},
    {"vocab_size": 4, "temperature": 2.0, "separate_critic": True},
]


def perturbed(module: torch.nn.Module, seed: int) -> None:
    """Adds noise to all weights, so that no two networks are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def policy_of(**settings: Any) -> TransformerPolicy:
    """A policy on a model with six logits, with an arbitrary value head."""
    config = GPT2Config(vocab_size=6, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=None, eos_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    perturbed(model, 1)
    policy = TransformerPolicy(model, **settings)
    perturbed(policy.value_head, 2)
    if policy.critic is not None:
        perturbed(policy.critic, 3)
    return policy


def expected(policy: TransformerPolicy, settings: dict[str, Any], prefix: list[int]) -> tuple[np.ndarray, float]:
    """The logits over temperature of the next token after a prefix, and V: the value head on the last hidden state."""
    with torch.no_grad():
        output = policy.model(torch.tensor([prefix]), output_hidden_states=True)
        hidden = output.hidden_states[-1]
        if settings.get("separate_critic"):
            assert policy.critic is not None
            hidden = policy.critic(torch.tensor([prefix])).last_hidden_state
        weight, bias = policy.value_head.weight[0].numpy(), policy.value_head.bias.item()
        value = float(hidden[0, -1].numpy() @ weight + bias)
    logits = output.logits[0, -1].double().numpy()
    return logits[: settings.get("vocab_size", 6)] / settings.get("temperature", 1.0), value


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_log_pi_and_v_are_their_definitions(settings: dict[str, Any]) -> None:
    """log softmax of the first V logits over temperature, over the allowed tokens; V of the policy's trunk or its own.

    In sampling, in an update and for one observation; every setting changes the result.
    """
    size = settings.get("vocab_size", 6)
    env = make(words(size, reference=random_reference(size, 7, sparse=True), max_new_tokens=4))
    policy = policy_of(**settings)
    rollout = collect(env, policy, 8, generator=new_generator("cpu", 0))
    inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    with torch.no_grad():
        update = policy.evaluate_actions(*inputs, rollout.action_mask)
        alone = policy.values(*inputs)
    assert rollout.values is not None and update.values is not None and rollout.action_mask is not None
    forbidden, others = 0, {"log_probs": 0.0, "values": 0.0}
    for i, t in torch.nonzero(rollout.mask).tolist():
        column = rollout.input_ids.shape[1] - rollout.num_tokens + t
        real = rollout.attention_mask[i, :column] == 1
        prefix, token = rollout.input_ids[i, :column][real].tolist(), int(rollout.tokens[i, t])
        logits, value = expected(policy, settings, prefix)
        allowed = rollout.action_mask[i, t].numpy()
        log_probs = log_softmax(logits, allowed)
        for found in (rollout.log_probs, update.log_probs):
            assert found[i, t].item() == pytest.approx(log_probs[token], abs=1e-5)
        for found in (rollout.values, update.values, alone):
            assert found[i, t].item() == pytest.approx(value, abs=1e-5)
        ids, mask = torch.tensor([prefix]), torch.ones(1, len(prefix), dtype=torch.long)
        with torch.no_grad():
            np.testing.assert_allclose(policy.next_token_logits(ids, mask)[0], logits, atol=1e-5)
            both = policy.next_token_logits_and_values(ids, mask, torch.tensor(allowed)[None])
        np.testing.assert_allclose(both[0][0][torch.tensor(allowed)], logits[allowed], atol=1e-5)
        assert torch.isneginf(both[0][0][torch.tensor(~allowed)]).all()
        assert both[1].item() == pytest.approx(value, abs=1e-5)
        forbidden += int((~allowed).sum())
        plain, without = expected(policy, {}, prefix)
        others["log_probs"] += abs(log_softmax(plain, np.ones(6, dtype=np.bool_))[token] - log_probs[token])
        others["values"] += abs(without - value)
    assert forbidden > 0 and others["log_probs"] > 1  # control: without mask and settings
    assert (others["values"] > 1) == bool(settings.get("separate_critic"))


def test_every_setting_has_a_test() -> None:
    """A new argument of a policy needs a case in `SETTINGS`."""
    arguments = inspect.signature(TransformerPolicy).parameters.keys() - {"model"}
    assert arguments == {name for settings in SETTINGS for name in settings}
