"""Prompts in common are read once: the same log-probabilities, values and gradients, from fewer tokens."""

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
PLAIN = 10**9  # tokens to spare at least: nothing is shared
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
SHARES = [*sorted(CONFIGS), "opt", "gpt-neo"]


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share whatever is there to share."""
    share(monkeypatch, 1)


def share(monkeypatch: pytest.MonkeyPatch, least: float) -> None:
    """Where so many tokens need not be read."""
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_TOKENS", least)
    monkeypatch.setattr("textenv.lm.inputs.MIN_SAVED_FRACTION", 0)


def causal_lm(kind: str) -> Any:
    """A random one in float64, far from uniform."""
    if kind in CONFIGS:
        return model(kind).eval()
    made = AutoModelForCausalLM.from_config(OTHERS[kind]).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def grouped(kind: str, **kwargs: Any) -> tuple[Any, TransformerPolicy]:
    """A task with prompts of three lengths, and a policy with a value head that says something."""
    env = task(kind if kind in CONFIGS else "gpt2", reference=causal_lm(kind))
    return env, drifted(env, **kwargs)


def tokens_read(network: Any, call: Any) -> int:
    """The tokens, blanks among them, that pass through the embedding while `call` is made."""
    seen: list[int] = []
    hook = network.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].numel()))
    call()
    hook.remove()
    return sum(seen)


def read(policy: TransformerPolicy, rollout: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """log pi, V and the gradient of a sum in which each of them has a weight of its own."""
    policy.zero_grad()
    found = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    assert found.values is not None
    weights = torch.rand(2, *rollout.mask.shape, dtype=torch.float64, generator=new_generator("cpu", 3)) * rollout.mask
    (weights[0] * found.log_probs + weights[1] * found.values).sum().backward()  # type: ignore[no-untyped-call]
    gradient = [torch.zeros(1) if p.grad is None else p.grad.clone() for p in policy.parameters()]
    return found.log_probs.detach()[rollout.mask], found.values.detach()[rollout.mask], gradient


def furthest(ours: Any, theirs: Any) -> float:
    """Over log-probabilities, values and gradient, each in shares of its largest number."""
    flat = [(one, torch.cat([g.flatten() for g in gradient])) for *one, gradient in (ours, theirs)]
    pairs = zip(*([*one, gradient] for one, gradient in flat), strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)


@pytest.mark.parametrize("kind", SHARES)
@pytest.mark.parametrize("separate_critic", [False, True])
def test_it_says_and_learns_the_same(kind: str, separate_critic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in one pass, from fewer tokens. Control: rows with others' prompts."""
    env, policy = grouped(kind, separate_critic=separate_critic)
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    assert len(rollout.prompt.unique()) == 3
    networks = [policy.model, policy.critic] if separate_critic else [policy.model]
    found, counts = read(policy, rollout), [tokens_read(net, lambda: read(policy, rollout)) for net in networks]
    share(monkeypatch, PLAIN)
    plain = read(policy, rollout)
    assert furthest(found, plain) < EXACT
    width, horizon = rollout.input_ids.shape[1] - rollout.num_tokens, rollout.num_tokens
    assert counts == [3 * (width - 1) + 24 * horizon] * len(networks)
    share(monkeypatch, 1)
    monkeypatch.setattr(
        "textenv.lm.prefix_sharing.deduplicate", lambda *args: (*(found := deduplicate(*args))[:2], found[2].flip(0))
    )
    assert furthest(read(policy, rollout), plain) > 1e-3


@pytest.mark.parametrize("kind", ["mistral", "dynamic rope", "long rope", "no cache", "llama"])
def test_what_keys_and_values_do_not_say_is_read_in_one_pass(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that slide, positions turned by a text's length, no cache at all. Control: a model that shares."""
    policy = TransformerPolicy(causal_lm(kind), separate_critic=True)
    ids = torch.randint(1, 6, (6, 9), generator=new_generator("cpu", 0))
    ids[:, :4] = ids[0, :4]
    said, counts = {}, {}
    for least in (1, PLAIN):
        share(monkeypatch, least)
        texts = (ids, torch.ones_like(ids), 5)
        counts[least] = tokens_read(policy.critic, lambda texts=texts: policy.values(*texts))
        said[least] = policy.evaluate_actions(*texts)
    assert torch.allclose(said[1].log_probs, said[PLAIN].log_probs, atol=EXACT)
    assert counts[PLAIN] == 6 * 8 and counts[1] == {"llama": 3 + 6 * 5, "no cache": 3 + 6 * 8}.get(kind, 6 * 8)
    if kind in ("dynamic rope", "long rope"):  # control: it would have said something else
        share(monkeypatch, 1)
        monkeypatch.setattr("textenv.lm.prefix_sharing.supports_prefix_sharing", lambda config: True)
        assert not torch.allclose(policy.evaluate_actions(*texts).log_probs, said[PLAIN].log_probs, atol=1e-3)


@pytest.mark.parametrize("max_new_tokens", [2, 5])
def test_positions_that_turn_with_the_length_are_refused(max_new_tokens: int) -> None:
    """Agents refuse texts that grow beyond what is turned one way: what was sampled is not what is read afterwards."""
    env = task("llama", reference=causal_lm("long rope"), max_new_tokens=max_new_tokens)
    policy = TransformerPolicy.for_env(env)
    rollout = collect(env, policy, 64, generator=new_generator("cpu", 0))
    again = policy.evaluate_actions(rollout.input_ids, rollout.attention_mask, rollout.num_tokens).log_probs
    error = float((again.detach() - rollout.log_probs)[rollout.mask].abs().max())
    if max_new_tokens == 2:  # after prompts of three tokens at most
        assert error < EXACT
        RLOO(policy, env)
    else:
        assert error > 0.01
        with pytest.raises(ValueError, match="otherwise in texts of more than 5 tokens"):
            RLOO(policy, env)


@pytest.mark.parametrize("kind", [*SHARES, "mistral"])
def test_reading_into_a_cache_says_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is appended to texts that were read once, for several rows, is read after each row's own beginning."""
    network = causal_lm(kind)
    ids = torch.tensor([[3, 4, 5], [0, 4, 5], [3, 4, 5], [3, 4, 5], [0, 4, 5]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1]])
    tokens = torch.tensor([1, 2, 3, 4, 5])
    said = {}
    for least in (1, PLAIN):
        share(monkeypatch, least)
        decoder = CachedDecoder(network)
        first = decoder.prefill(ids, mask).logits
        said[least] = torch.cat([first, decoder.decode_step(tokens).logits], dim=1)
        assert decoder.mask.shape == (5, 4) and decoder.length.tolist() == [4, 3, 4, 4, 3]
    assert torch.allclose(said[1], said[PLAIN], rtol=0, atol=EXACT)
    assert not torch.allclose(said[1][0, 1], said[1][2, 1], atol=1e-3)  # control: other tokens after one beginning


def test_the_same_texts_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token, from prompts that were read once each: log-probabilities of the reference too."""
    env, policy = grouped("llama")
    rollouts = []
    for least in (1, PLAIN):
        share(monkeypatch, least)
        rollouts.append(collect(env, policy, 32, num_generations=8, generator=new_generator("cpu", 1)))
    ours, theirs = rollouts
    assert torch.equal(ours.input_ids, theirs.input_ids)
    for name in ("log_probs", "ref_log_probs", "values", "rewards"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6)


def test_a_group_of_answers_reads_its_prompt_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling, scoring and each epoch of RLOO; the minibatches of an epoch do so too, each for itself."""
    env, policy = grouped("gpt2")
    agent = RLOO(policy, env, n_episodes=32, num_generations=16, n_epochs=2, batch_size=16, seed=0)
    texts = sample_prompts(get_mdp(env), 32, 16, new_generator("cpu", 0))
    prompts, width = len(set(texts.prompt.tolist())), int(texts.attention_mask.sum(axis=1).max())
    assert prompts < 3
    written = {}
    for least in (PLAIN, 1):
        share(monkeypatch, least)
        generator = new_generator("cpu", 0)
        written[least] = tokens_read(policy.model, lambda g=generator: sample(policy, get_mdp(env), texts, g))
    assert written[PLAIN] - written[1] == (32 - prompts) * width
    rollout = agent.collect()
    horizon = rollout.num_tokens
    width, prompts = rollout.input_ids.shape[1] - horizon, len(rollout.prompt.unique())
    reference: Any = get_mdp(env).reference
    texts = (rollout.input_ids, rollout.attention_mask, horizon)
    assert tokens_read(reference.model, lambda: reference.token_log_probs(*texts)) == (
        prompts * (width - 1) + 32 * horizon
    )
    trained = tokens_read(policy.model, lambda: agent.train(rollout))
    assert 2 * 32 * horizon <= trained <= 2 * 32 * horizon + 4 * prompts * (width - 1)


def test_checkpointing_keeps_no_cache() -> None:
    """So there all is read in one pass, and the gradient is the same."""
    env, policy = grouped("llama")
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    found = read(policy, rollout)
    policy.gradient_checkpointing_enable()
    whole = rollout.input_ids[:, :-1].numel()
    assert tokens_read(policy.model, lambda: read(policy, rollout)) == whole
    assert furthest(read(policy, rollout), found) < EXACT


def test_adapters_on_and_off() -> None:
    """Within an adapter too, and of the reference whose weights it shares, while it is off."""
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
    texts = (rollout.input_ids, rollout.attention_mask, rollout.num_tokens)
    count = tokens_read(policy.model, lambda: policy.evaluate_actions(*texts))
    assert count < rollout.input_ids[:, :-1].numel()
    merged = copy.deepcopy(policy.model).merge_and_unload()
    assert not torch.allclose(reference.token_log_probs(*texts), rollout.log_probs, atol=0.1)  # control: it moved
    assert torch.allclose(reference.token_log_probs(*texts), alone.token_log_probs(*texts), atol=1e-5)
    one, other = (forward_completions(network, *texts).logits for network in (policy.model, merged))
    assert torch.allclose(one, other, atol=EXACT)


@given(data=st.data(), rows=st.integers(1, 8), width=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_the_different_ones_are_found(data: Any, rows: int, width: int) -> None:
    """Ids and mask of each row are those of one of them; of those no two are equal; blanks may hold any id."""
    numbers = st.lists(st.lists(st.integers(0, 2), min_size=width, max_size=width), min_size=rows, max_size=rows)
    ids = torch.tensor(data.draw(numbers), dtype=torch.long).view(rows, width)
    mask = torch.tensor(data.draw(numbers), dtype=torch.long).view(rows, width).clamp(max=1)
    texts = {tuple(row) for row in torch.where(mask == 1, ids, -1).tolist()}
    found = deduplicate(ids, mask, 0)
    if len(texts) * width == rows * width:  # nothing to spare
        assert found is None
        return
    assert found is not None
    once, its_mask, row = found
    assert torch.equal(its_mask[row], mask) and torch.equal(once[row] * mask, ids * mask)
    assert len(once) == len(texts)


def test_little_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bookkeeping must spare 512 tokens, and an eighth of all; so toys are read in one pass."""
    monkeypatch.undo()
    ids = torch.zeros(64, 9, dtype=torch.long)
    assert deduplicate(ids, torch.ones_like(ids), 64 * 70) is not None  # spares 63 x 9 = 567
    assert deduplicate(ids, torch.ones_like(ids), 64 * 72) is None
    assert deduplicate(ids[:, :8], torch.ones_like(ids[:, :8]), 64 * 8) is None


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("horizon", [1, 3])
def test_prompts_of_any_length(width: int, horizon: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one token, alone or beside longer ones; answers of one token; no blanks, blanks on either side."""
    network, generator = causal_lm("llama"), new_generator("cpu", 0)
    prompts = torch.randint(1, 6, (2, width), generator=generator)[torch.tensor([0, 1, 1, 0, 1, 1])]
    ids = torch.cat([prompts, torch.randint(1, 6, (6, horizon), generator=generator)], dim=1)
    for blanks in (False, True):
        mask = torch.ones_like(ids)
        if blanks:
            mask[prompts[:, :1].eq(prompts[0, :1]).all(dim=1), : width - 1] = 0
            mask[:3, width + 1 :] = 0
        said = {}
        for least in (1, PLAIN):
            share(monkeypatch, least)
            logits = forward_completions(network, ids, mask, horizon).logits
            said[least] = logits[:, : 1 if blanks else None]  # what follows a blank on the right means nothing
        assert said[1].shape == said[PLAIN].shape
        assert torch.allclose(said[1], said[PLAIN], atol=EXACT)


def test_without_a_gradient_one_layers_keys_are_there_for_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps the prompts', however many rows attend to them."""
    network, kept = causal_lm("llama"), []
    plain = SharedPrefixLayer.update

    def watched(layer: SharedPrefixLayer, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        found = plain(layer, *args, **kwargs)
        kept.append((layer.keys.shape[0], layer.keys.shape[2], found[0].shape[0], found[0].shape[2]))
        return found

    monkeypatch.setattr(SharedPrefixLayer, "update", watched)
    with torch.no_grad():
        forward_completions(network, torch.tensor([[1, 2, 3, 4]] * 8), torch.ones(8, 4).long(), 1)
    assert kept == [(1, 2, 1, 2)] * 2 + [(1, 2, 8, 3)] * 2


def test_parts_of_a_minibatch_have_prompts_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were shuffled are sorted before they are split; the gradient is that of the whole."""
    env, policy = grouped("gpt2")
    rollout = collect(env, policy, 32, num_generations=8, generator=new_generator("cpu", 0))
    parts: list[Tensor] = []
    gradients = []
    for size in (None, 8):
        agent = RLOO(policy, env, n_episodes=32, num_generations=8, n_epochs=1, micro_batch_size=size, seed=0)
        loss = agent.loss

        def watched(answers: Any, *args: Any, loss: Any = loss) -> Any:
            parts.append(answers.prompt)
            return loss(answers, *args)

        monkeypatch.setattr(agent, "loss", watched)
        monkeypatch.setattr(agent, "step", lambda: 0.0)
        agent.train(rollout)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
    assert [len(part) for part in parts] == [32, 8, 8, 8, 8]
    assert [len(part.unique()) for part in parts[1:]] == [1, 1, 1, 1]
    whole, split = gradients
    assert (split - whole).abs().max() < EXACT * whole.abs().max()
