"""Prefix sharing: the same log-probabilities, values and gradients, from fewer tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, MistralConfig, OpenAIGPTConfig, OPTConfig

from agents import RLOO
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator, sample, sample_prompts
from tests.helpers.models import CONFIGS, PADDED, SMALL, drifted, model, task
from textenv import get_mdp
from textenv.lm import CachedDecoder, forward_completions
from textenv.lm.inputs import deduplicate
from textenv.lm.prefix_sharing import SharedPrefixLayer
from textenv.references import CausalLMReference

EXACT = 1e-5  # of the largest number: norms and rotary positions are in float32, whatever the weights are
PLAIN = 10**9  # tokens to save at least: nothing is shared
OTHERS: dict[str, Any] = {
    "opt": OPTConfig(
        vocab_size=PADDED, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, word_embed_proj_dim=16, bos_token_id=None, eos_token_id=0, pad_token_id=None,
    ),
    "gpt-neo": GPTNeoConfig(
        vocab_size=PADDED, hidden_size=16, num_layers=2, num_heads=4, max_position_embeddings=32, window_size=4,
        attention_types=[[["global", "local"], 1]], bos_token_id=None, eos_token_id=0, pad_token_id=None,
    ),
    "dynamic rope": LlamaConfig(
        **SMALL | {"max_position_embeddings": 6}, vocab_size=PADDED, eos_token_id=0, pad_token_id=None,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
    "long rope": LlamaConfig(
        **SMALL, vocab_size=PADDED, eos_token_id=0, pad_token_id=None,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "short_factor": [1.0, 1.0],
                         "long_factor": [2.0, 4.0], "original_max_position_embeddings": 5},
    ),
    "no cache": OpenAIGPTConfig(vocab_size=PADDED, n_positions=32, n_embd=16, n_layer=2, n_head=4),
    "mistral": MistralConfig(**SMALL, vocab_size=PADDED, eos_token_id=0, pad_token_id=None, sliding_window=4),
}  # fmt: skip
SHARING = [*sorted(CONFIGS), "opt", "gpt-neo"]


@pytest.fixture(autouse=True)
def always_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares every common prompt."""
    share(monkeypatch, 1)


def share(monkeypatch: pytest.MonkeyPatch, least: float) -> None:
    """Shares prompts where that saves at least `least` tokens."""
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_TOKENS", least)
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_FRACTION", 0)


def causal_lm(kind: str) -> Any:
    """A random model in float64, far from uniform."""
    if kind in CONFIGS:
        return model(kind).eval()
    network = AutoModelForCausalLM.from_config(OTHERS[kind]).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def grouped(kind: str, **kwargs: Any) -> tuple[Any, TransformerPolicy]:
    """A task with prompts of three lengths, and a policy with a non-zero value head."""
    env = task(kind if kind in CONFIGS else "gpt2", reference=causal_lm(kind))
    return env, drifted(env, **kwargs)


def tokens_embedded(network: Any, call: Any) -> int:
    """The number of tokens, padding included, that pass through the embedding during `call`."""
    counts: list[int] = []
    hook = network.get_input_embeddings().register_forward_pre_hook(lambda _, args: counts.append(args[0].numel()))
    call()
    hook.remove()
    return sum(counts)


def evaluate(policy: TransformerPolicy, rollout: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """log pi, V and the gradient of their sum with random weights."""
    policy.zero_grad()
    outputs = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert outputs.values is not None
    weights = torch.rand(2, *rollout.mask.shape, dtype=torch.float64, generator=new_generator("cpu", 3)) * rollout.mask
    (weights[0] * outputs.log_probs + weights[1] * outputs.values).sum().backward()  # type: ignore[no-untyped-call]
    gradient = [torch.zeros(1) if p.grad is None else p.grad.clone() for p in policy.parameters()]
    return outputs.log_probs.detach()[rollout.mask], outputs.values.detach()[rollout.mask], gradient


def max_relative_error(ours: Any, theirs: Any) -> float:
    """The largest error of log-probabilities, values and gradient, each relative to its largest number."""
    flat = [(one, torch.cat([g.flatten() for g in gradient])) for *one, gradient in (ours, theirs)]
    pairs = zip(*([*one, gradient] for one, gradient in flat), strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("separate_critic", [False, True])
def test_outputs_and_gradients_are_the_same(kind: str, separate_critic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one pass, from fewer tokens. Negative control: rows with the wrong prompts."""
    env, policy = grouped(kind, separate_critic=separate_critic)
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    assert len(rollout.prompt.unique()) == 3
    networks = [policy.model, policy.critic] if separate_critic else [policy.model]
    shared = evaluate(policy, rollout)
    counts = [tokens_embedded(net, lambda: evaluate(policy, rollout)) for net in networks]
    share(monkeypatch, PLAIN)
    plain = evaluate(policy, rollout)
    assert max_relative_error(shared, plain) < EXACT
    width, horizon = rollout.input_ids.shape[1] - rollout.num_tokens, rollout.num_tokens
    assert counts == [3 * (width - 1) + 24 * horizon] * len(networks)
    share(monkeypatch, 1)
    monkeypatch.setattr(
        "textenv.lm.prefix_sharing.deduplicate",
        lambda *args: (*(rows := deduplicate(*args))[:2], rows[2].flip(0)),
    )
    assert max_relative_error(evaluate(policy, rollout), plain) > 1e-3


@pytest.mark.parametrize("kind", ["mistral", "dynamic rope", "long rope", "no cache", "llama"])
def test_models_that_cannot_share_run_in_one_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding windows, rotary positions that depend on the length, no cache. Control: a model that shares."""
    policy = TransformerPolicy(causal_lm(kind), separate_critic=True)
    ids = torch.randint(1, 6, (6, 9), generator=new_generator("cpu", 0))
    ids[:, :4] = ids[0, :4]
    outputs, counts = {}, {}
    for least in (1, PLAIN):
        share(monkeypatch, least)
        inputs = (ids, torch.ones_like(ids), 5)
        counts[least] = tokens_embedded(policy.critic, lambda inputs=inputs: policy.values(*inputs))
        outputs[least] = policy.evaluate_actions(*inputs)
    assert torch.allclose(outputs[1].log_probs, outputs[PLAIN].log_probs, atol=EXACT)
    assert counts[PLAIN] == 6 * 8 and counts[1] == (3 + 6 * 5 if kind == "llama" else 6 * 8)
    if kind in ("dynamic rope", "long rope"):  # control: sharing would give other log-probabilities
        share(monkeypatch, 1)
        monkeypatch.setattr("textenv.lm.prefix_sharing.supports_prefix_sharing", lambda config: True)
        assert not torch.allclose(policy.evaluate_actions(*inputs).log_probs, outputs[PLAIN].log_probs, atol=1e-3)


def test_rotary_positions_that_depend_on_the_length_are_refused() -> None:
    """Beyond the first rotary regime, where a long row changes shorter ones, neither reference nor policy may go."""
    network = causal_lm("long rope")
    env = task("llama", reference=network, max_new_tokens=2)  # after prompts of three tokens at most
    policy = TransformerPolicy.for_env(env)
    rollout = collect(env, policy, 64, generator=new_generator("cpu", 0))
    evaluated = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
    assert float((evaluated.detach() - rollout.log_probs)[rollout.mask].abs().max()) < EXACT
    RLOO(policy, env)
    with pytest.raises(ValueError, match="more than the reference's context of 5"):
        task("llama", reference=network, max_new_tokens=5)
    with pytest.raises(ValueError, match="must fit the policy's context of 5 tokens"):
        RLOO(policy, task("llama", max_new_tokens=5))
    with torch.no_grad():  # control: beyond it the logits of a row depend on the length of another
        alone, beside = (network(torch.arange(width)[None]).logits[:, :5] for width in (5, 8))
    assert not torch.allclose(alone, beside, atol=1e-3)


@pytest.mark.parametrize("kind", [*SHARING, "mistral"])
def test_cached_decoding_gives_the_same_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that follow a prefix prefilled once for several rows attend to each row's own prefix."""
    network = causal_lm(kind)
    ids = torch.tensor([[3, 4, 5], [0, 4, 5], [3, 4, 5], [3, 4, 5], [0, 4, 5]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]])
    tokens = torch.tensor([1, 2, 3, 4, 5])
    logits = {}
    for least in (1, PLAIN):
        share(monkeypatch, least)
        decoder = CachedDecoder(network)
        first = decoder.prefill(ids, mask).logits
        logits[least] = torch.cat([first, decoder.decode_step(tokens).logits], dim=1)
        assert decoder.mask.shape == (5, 4) and decoder.length.tolist() == [4, 3, 4, 4, 3]
    assert torch.allclose(logits[1], logits[PLAIN], rtol=0, atol=EXACT)
    assert not torch.allclose(logits[1][0, 1], logits[1][2, 1], atol=1e-3)  # control: other tokens after one prefix


def test_the_same_completions_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token, from prompts prefilled once each; the reference's log-probabilities are the same too."""
    env, policy = grouped("llama")
    rollouts = []
    for least in (1, PLAIN):
        share(monkeypatch, least)
        rollouts.append(collect(env, policy, 32, num_generations=8, generator=new_generator("cpu", 1)))
    ours, theirs = rollouts
    assert torch.equal(ours.input_ids, theirs.input_ids)
    for name in ("log_probs", "ref_log_probs", "values", "rewards"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6)


def test_a_group_processes_its_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In sampling, scoring and each epoch of RLOO; each minibatch of an epoch shares prompts by itself."""
    env, policy = grouped("gpt2")
    agent = RLOO(policy, env, n_episodes=32, num_generations=16, n_epochs=2, batch_size=16, seed=0)
    state = sample_prompts(get_mdp(env), 32, 16, new_generator("cpu", 0))
    prompts, width = len(set(state.prompt.tolist())), int(state.attention_mask.sum(axis=1).max())
    assert prompts < 3
    counts = {}
    for least in (PLAIN, 1):
        share(monkeypatch, least)
        generator = new_generator("cpu", 0)
        counts[least] = tokens_embedded(policy.model, lambda g=generator: sample(policy, get_mdp(env), state, g))
    assert counts[PLAIN] - counts[1] == (32 - prompts) * width
    rollout = agent.collect()
    horizon = rollout.num_tokens
    width, prompts = rollout.input_ids.shape[1] - horizon, len(rollout.prompt.unique())
    reference: Any = get_mdp(env).reference
    inputs = (rollout.input_ids, rollout.attention_mask, horizon)
    assert tokens_embedded(reference.model, lambda: reference.token_log_probs(*inputs)) == (
        prompts * (width - 1) + 32 * horizon
    )
    trained = tokens_embedded(policy.model, lambda: agent.train(rollout))
    assert 2 * 32 * horizon <= trained <= 2 * 32 * horizon + 4 * prompts * (width - 1)


def test_checkpointing_uses_no_cache() -> None:
    """It runs in one pass, with the same gradient."""
    env, policy = grouped("llama")
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    shared = evaluate(policy, rollout)
    policy.gradient_checkpointing_enable()
    whole = rollout.input_ids[:, :-1].numel()
    assert tokens_embedded(policy.model, lambda: evaluate(policy, rollout)) == whole
    assert max_relative_error(evaluate(policy, rollout), shared) < EXACT


def test_adapters_on_and_off() -> None:
    """With an adapter, and for the reference that shares its weights, with the adapter disabled."""
    peft = pytest.importorskip("peft")
    env = task("llama", reference=causal_lm("llama"))
    policy = TransformerPolicy.for_env(env, lora=peft.LoraConfig(r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    reference = get_mdp(env).reference
    assert isinstance(reference, CausalLMReference)
    alone = CausalLMReference(causal_lm("llama"), vocab_size=reference.vocab_size)
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    inputs = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    count = tokens_embedded(policy.model, lambda: policy.evaluate_actions(*inputs))
    assert count < rollout.input_ids[:, :-1].numel()
    merged = copy.deepcopy(policy.model).merge_and_unload()
    assert not torch.allclose(reference.token_log_probs(*inputs), rollout.log_probs, atol=0.1)  # control: they differ
    assert torch.allclose(reference.token_log_probs(*inputs), alone.token_log_probs(*inputs), atol=1e-5)
    one, other = (forward_completions(network, *inputs).logits for network in (policy.model, merged))
    assert torch.allclose(one, other, atol=EXACT)


@given(data=st.data(), rows=st.integers(1, 8), width=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_deduplicate_finds_the_distinct_rows(data: Any, rows: int, width: int) -> None:
    """Each row's ids and mask are those of its distinct row; no two of these are equal; padding may have any id."""
    numbers = st.lists(st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=rows, max_size=rows)
    ids = torch.tensor(data.draw(numbers), dtype=torch.long).view(rows, width)
    mask = torch.tensor(data.draw(numbers), dtype=torch.long).view(rows, width).clamp(max=1)
    expected = {tuple(row) for row in torch.where(mask == 1, ids, -1).tolist()}
    found = deduplicate(ids, mask, 0)
    if len(expected) * width == rows * width:  # nothing to save
        assert found is None
        return
    assert found is not None
    distinct_ids, distinct_mask, row = found
    assert torch.equal(distinct_mask[row], mask) and torch.equal(distinct_ids[row] * mask, ids * mask)
    assert len(distinct_ids) == len(expected)


def test_small_savings_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing must save 512 tokens and an eighth of all; so toys run in one pass."""
    monkeypatch.undo()
    ids = torch.zeros(64, 9, dtype=torch.long)
    assert deduplicate(ids, torch.ones_like(ids), 64 * 70) is not None  # saves 63 x 9 = 567
    assert deduplicate(ids, torch.ones_like(ids), 64 * 72) is None
    assert deduplicate(ids[:, :8], torch.ones_like(ids[:, :8]), 64 * 8) is None


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("horizon", [1, 3])
def test_prompts_of_any_length(width: int, horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of one token, alone or with longer ones; completions of one token; with and without padding."""
    network, generator = causal_lm("llama"), new_generator("cpu", 0)
    prompts = torch.randint(1, 6, (2, width), generator=generator)[torch.tensor([0, 1, 1, 0, 1, 1])]
    ids = torch.cat([prompts, torch.randint(1, 6, (6, horizon), generator=generator)], dim=1)
    for padded in (False, True):
        mask = torch.ones_like(ids)
        if padded:
            mask[prompts[:, :1].eq(prompts[0, :1]).all(dim=1), : width - 1] = 0
            mask[:3, width + 1 :] = 0
        outputs = {}
        for least in (1, PLAIN):
            share(monkeypatch, least)
            logits = forward_completions(network, ids, mask, horizon).logits
            outputs[least] = logits[:, : 1 if padded else None]  # logits after padding on the right are meaningless
        assert outputs[1].shape == outputs[PLAIN].shape
        assert torch.allclose(outputs[1], outputs[PLAIN], atol=EXACT)


def test_the_cache_stores_one_row_per_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache stores the prompts' keys once, however many rows attend to them."""
    network, shapes = causal_lm("llama"), []
    plain = SharedPrefixLayer.update

    def record_shapes(layer: SharedPrefixLayer, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = plain(layer, *args, **kwargs)
        shapes.append((layer.keys.shape[0], layer.keys.shape[2], keys.shape[0], keys.shape[2]))
        return keys, values

    monkeypatch.setattr(SharedPrefixLayer, "update", record_shapes)
    with torch.no_grad():
        forward_completions(network, torch.tensor([[1, 2, 3, 4]] * 8), torch.ones(8, 4).long(), 1)
    assert shapes == [(1, 2, 1, 2)] * 2 + [(1, 2, 8, 3)] * 2


def test_micro_batches_share_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled rows are sorted before they are split; the gradient is that of the whole minibatch."""
    env, policy = grouped("gpt2")
    rollout = collect(env, policy, 32, num_generations=8, generator=new_generator("cpu", 0))
    prompts: list[Tensor] = []
    gradients = []
    for size in (None, 8):
        agent = RLOO(policy, env, n_episodes=32, num_generations=8, n_epochs=1, micro_batch_size=size, seed=0)
        losses = agent.losses

        def record_prompts(micro_batch: Any, losses: Any = losses) -> Any:
            prompts.append(micro_batch.rollout.prompt)
            return losses(micro_batch)

        monkeypatch.setattr(agent, "losses", record_prompts)
        monkeypatch.setattr(agent, "step", lambda: 0.0)
        agent.train(rollout)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
    assert [len(prompt) for prompt in prompts] == [32, 8, 8, 8, 8]
    assert [len(prompt.unique()) for prompt in prompts[1:]] == [1, 1, 1, 1]
    whole, split = gradients
    assert (split - whole).abs().max() < EXACT * whole.abs().max()
