"""Agents with Hugging Face causal language models of many families, as small random models in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from agents.training import Batch
from tests.helpers.models import CONFIGS, PADDED, SPECIAL, WORDS, drifted, model, task
from textenv.testing import play

every_family = pytest.mark.parametrize("kind", sorted(CONFIGS))


@every_family
@pytest.mark.parametrize("special", sorted(SPECIAL))
def test_collect_equals_stepping(kind: str, special: str) -> None:
    """Each reward and log-probability, with any padding token: as of each sequence alone, unpadded."""
    env = task(kind, special)
    policy = drifted(env)
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 1 and len(set(rollout.prompts.tolist())) == 3
    assert rollout.stopped.any() and not rollout.stopped.all()
    env.unwrapped.bind_policy(policy.next_token_logits)
    for row in range(len(rollout)):
        real = rollout.mask[row]
        tokens = rollout.tokens[row][real].tolist()
        episode = play(env, str(rollout.prompts[row]), tokens)
        np.testing.assert_allclose(rollout.rewards[row][real], episode.rewards, atol=1e-5)
        np.testing.assert_allclose(rollout.ref_log_probs[row][real], episode.ref_log_probs, atol=1e-5)
        assert max(tokens) < len(WORDS) and rollout.completions[row] == episode.completion
        prompt = env.unwrapped.mdp.tokenizer.encode(str(rollout.prompts[row]))
        alone = policy.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1, : len(WORDS)]
        expected = alone.log_softmax(dim=-1)[range(len(tokens)), tokens]
        torch.testing.assert_close(rollout.log_probs[row][real].double(), expected, rtol=0, atol=1e-5)


@every_family
def test_the_first_ratio_is_one(kind: str) -> None:
    """Dropout in the config, a cache in sampling, none in the update: rho = 1 within 1e-5."""
    env = task(kind)
    agent = PPO(drifted(env), env, n_epochs=1, n_episodes=16, seed=0)
    assert agent.train(agent.collect())["val/ratio_error_max"] < 1e-5


@every_family
def test_training_keeps_the_reference_and_saves_the_policy(kind: str, tmp_path: Path) -> None:
    """Tied weights or not: training does not change the reference, and the checkpoint loads as any other."""
    env = task(kind)
    reference = env.unwrapped.mdp.reference.model
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    policy = TransformerPolicy.for_env(env)
    assert policy.vocab_size == len(WORDS) < PADDED
    agent = PPO(policy, env, n_episodes=16, learning_rate=1e-2, seed=0).learn(100)
    assert all(torch.equal(tensor, before[name]) for name, tensor in reference.state_dict().items())
    agent.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(loaded(ids).logits, policy.model(ids).logits)
    assert not torch.allclose(loaded(ids).logits, reference(ids).logits, atol=1e-3)  # control: training changed it
    resumed = PPO.load(tmp_path, env)
    assert resumed.policy.vocab_size == len(WORDS)


def test_several_eos_tokens() -> None:
    """All EOS tokens of the generation config end a completion, each with its own log-probability and reward."""
    several = model("llama", eos_token_id=[0, 2])
    several.generation_config.eos_token_id = [0, 2]
    env = task("llama", reference=several, max_new_tokens=8)
    assert env.unwrapped.mdp.eos_token_ids == [0, 2]
    rollout = collect(env, drifted(env), 64, generator=new_generator("cpu", 0))
    last = rollout.tokens.gather(1, rollout.mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
    assert set(last[rollout.stopped].tolist()) == {0, 2}
    assert not torch.isin(rollout.tokens[:, :-1][rollout.mask[:, 1:]], torch.tensor([0, 2])).any()
    assert rollout.log_probs[rollout.mask].all()


@every_family
@pytest.mark.parametrize("separate_critic", [False, True])
def test_checkpointing_stores_less_with_the_same_gradient(kind: str, separate_critic: bool) -> None:
    """The same gradient within 1e-5, with or without dropout in the config, and fewer numbers saved for backward."""
    env = task(kind)
    policy = drifted(env, separate_critic=separate_critic)
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    gradients, saved = [], []
    for checkpointing in (False, True):
        if checkpointing:
            policy.gradient_checkpointing_enable()
        agent = PPO(policy, env, n_epochs=1, n_episodes=16, learning_rate=0.0, seed=0)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.numel()), x)[1], lambda x: x):
            _losses = list(agent.losses(Batch(rollout, rollout.rewards, rollout.rewards)))  # keeps their graphs alive
        saved.append(sum(sizes))
        assert agent.train(rollout)["val/ratio_error_max"] < 1e-5
        gradients.append([p.grad.clone() for p in policy.parameters()])
    assert saved[1] < saved[0] / 2
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-5)
    assert not any(layer.training for layer in policy.modules())
    collect(env, policy, 4)  # and sampling still uses the cache


def test_a_layers_own_dropout_stays_off() -> None:
    """Some layers (OPT's) call functional dropout instead of a module: it stays off when checkpointed too."""
    config = OPTConfig(
        vocab_size=PADDED, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=4, dropout=0.5,
        max_position_embeddings=32, word_embed_proj_dim=16, eos_token_id=0, pad_token_id=1, bos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    policy = TransformerPolicy(AutoModelForCausalLM.from_config(config).double())
    policy.gradient_checkpointing_enable()
    layers = [layer for layer in policy.modules() if isinstance(layer, GradientCheckpointingLayer)]
    assert layers
    ids, mask = torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.long)
    first, second = (policy.evaluate_actions(ids, mask, 2).log_probs for _ in range(2))
    assert first.requires_grad and torch.equal(first, second)


def test_unsuitable_models_are_refused() -> None:
    """A model without gradient checkpointing, and one with fewer logits than tokens."""
    policy = TransformerPolicy(model("gpt2"))
    policy.model.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no gradient checkpointing"):
        policy.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"vocabulary of 5 tokens, the tokenizer one of 6"):
        task("gpt2", reference=model("gpt2", vocab_size=5))


def test_generate_samples_from_the_policy(tmp_path: Path) -> None:
    """A checkpoint's generation config has its temperature and excludes tokens that the tokenizer does not have."""
    policy = TransformerPolicy.for_env(task("llama"), temperature=0.5)
    policy.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.tensor([[3, 4]])
    torch.manual_seed(0)
    sampled = plain.generate(ids, max_new_tokens=1, num_return_sequences=4000, top_k=0)[:, -1]
    frequencies = torch.bincount(sampled, minlength=PADDED) / len(sampled)
    with torch.no_grad():
        expected = policy.log_softmax(policy.next_token_logits(ids, torch.ones_like(ids)) * 0.5)[0].exp()
    assert not frequencies[len(WORDS) :].any()
    torch.testing.assert_close(frequencies[: len(WORDS)], expected, rtol=0, atol=0.04)
    assert (expected.sqrt() / expected.sqrt().sum() - expected).abs().max() > 0.1  # control: T = 1 differs


@every_family
def test_it_learns(kind: str) -> None:
    """A few updates of REINFORCE raise the return of each family."""
    env = task(kind, kl_coef=0.01)
    policy = TransformerPolicy.for_env(env)
    returns = lambda: float(collect(env, policy, 256, generator=new_generator("cpu", 7)).rewards.sum(dim=1).mean())  # noqa: E731
    before = returns()
    REINFORCE(policy, env, learning_rate=1e-2, n_episodes=32, seed=0).learn(3000)
    assert returns() > before + 0.3
