"""Any Hugging Face causal language model: the shapes and habits of real ones, on small random ones in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    T5Config,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from agents import PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from tests.helpers.models import CONFIGS, PADDED, SMALL, SPECIAL, WORDS, drifted, model, task, tokenizer
from tests.helpers.tasks import letter_values
from textenv.lm import check_causal
from textenv.testing import play

every_shape = pytest.mark.parametrize("kind", sorted(CONFIGS))


@every_shape
@pytest.mark.parametrize("special", sorted(SPECIAL))
def test_collect_pays_what_stepping_pays(kind: str, special: str) -> None:
    """Reward by reward, log-probability by log-probability, whatever pads: as each text read alone, unpadded."""
    env = task(kind, special)
    policy = drifted(env)
    rollout = collect(env, policy, 24, generator=new_generator("cpu", 0))
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 1 and len(set(rollout.prompts.tolist())) == 3
    assert rollout.stopped.any() and not rollout.stopped.all()
    env.unwrapped.bind_policy(policy.next_token_logits)
    for row in range(len(rollout)):
        written = rollout.mask[row]
        tokens = rollout.tokens[row][written].tolist()
        episode = play(env, str(rollout.prompts[row]), tokens)
        np.testing.assert_allclose(rollout.rewards[row][written], episode.rewards, atol=1e-5)
        np.testing.assert_allclose(rollout.ref_log_probs[row][written], episode.ref_log_probs, atol=1e-5)
        assert max(tokens) < len(WORDS) and rollout.completions[row] == episode.text
        prompt = env.unwrapped.mdp.tokenizer.encode(str(rollout.prompts[row]))
        alone = policy.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1, : len(WORDS)]
        expected = alone.log_softmax(dim=-1)[range(len(tokens)), tokens]
        torch.testing.assert_close(rollout.log_probs[row][written].double(), expected, rtol=0, atol=1e-5)


@every_shape
def test_the_first_ratio_is_one(kind: str) -> None:
    """Dropout in the config, a cache in sampling, none in the update: rho = 1 within 1e-5 all the same."""
    env = task(kind)
    agent = PPO(drifted(env), env, n_epochs=1, n_episodes=16, seed=0)
    assert agent.train(agent.collect())["val/ratio_error_max"] < 1e-5


@every_shape
def test_the_reference_stays_and_the_policy_is_saved(kind: str, tmp_path: Path) -> None:
    """Tied weights or not: after learning the reference is what it was, and the checkpoint loads as any other."""
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
    assert not torch.allclose(loaded(ids).logits, reference(ids).logits, atol=1e-3)  # control: it learned
    again = PPO.load(tmp_path, env)
    assert again.policy.vocab_size == len(WORDS)


TEMPLATE = "{% for m in messages %}{% if m.role == 'system' %}c {% elif m.role == 'user' %}<p> {% else %}b {% endif %}"


TEMPLATE += "{{ m.content }} {% endfor %}{% if add_generation_prompt %}b{% endif %}"


CHATS = [
    [{"role": "user", "content": "a a"}],
    [{"role": "system", "content": "c"}, {"role": "user", "content": "b"}],
]


def chat_task(prompts: Any, reward: Any = letter_values, template: str | None = TEMPLATE) -> Any:
    """Conversations as prompts."""
    speaks = tokenizer("pad")
    speaks.chat_template = template
    return gym.make(
        "textenv/Text-v0",
        tokenizer=speaks,
        prompts=prompts,
        reward=reward,
        reference=model("qwen2"),
        max_new_tokens=5,
    )


@pytest.mark.parametrize("form", ["list", "prompt", "messages", "jsonl"])
def test_a_conversation_is_a_prompt(form: str, tmp_path: Path) -> None:
    """In each form: what the chat template makes of it, the assistant's turn begun; rewards get the messages."""
    seen: list[Any] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, messages: Any, **columns: Any) -> list[float]:
        seen.extend(zip(prompts, messages, strict=True))
        return [float(len(each)) for each in messages]

    rows: Any = [{form: chat} for chat in CHATS]
    if form == "list":
        rows = CHATS
    elif form == "jsonl":
        rows = tmp_path / "chats.jsonl"
        rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    env = chat_task(rows, reward)
    assert env.unwrapped.prompts == ["<p> a a b", "c c <p> b b"]
    speaks = env.unwrapped.mdp.tokenizer
    for i, chat in enumerate(CHATS):
        observation, _ = env.reset(options={"prompt": i})
        ids = speaks.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert observation["input_ids"][observation["attention_mask"] == 1].tolist() == ids
        again, _ = env.reset(options={"prompt": chat})
        assert np.array_equal(again["input_ids"], observation["input_ids"])
    rollout = collect(env, drifted(env), 8, generator=new_generator("cpu", 0))
    assert set(rollout.scores.tolist()) == {1.0, 2.0}
    assert all(chat == CHATS[env.unwrapped.prompts.index(text)] for text, chat in seen)
    own, _ = env.reset(options={"prompt": [{"role": "user", "content": "c"}]})
    assert own["input_ids"][own["attention_mask"] == 1].tolist() == speaks.encode("<p> c b")


def test_bad_conversations_are_refused() -> None:
    """No template, a template that refuses, messages without a role: the error says where and what."""
    with pytest.raises(ValueError, match="prompt 0: messages need a tokenizer with a chat template"):
        chat_task(CHATS, template=None)
    with pytest.raises(ValueError, match="prompt 0: the chat template refuses .*no system"):
        chat_task(CHATS[1:], template="{{ raise_exception('no system') }}")
    with pytest.raises(ValueError, match="prompt 1: a prompt must be a string, or messages with the texts role"):
        chat_task(["a", [{"role": "user"}]])
    with pytest.raises(ValueError, match="prompt 1: must have the field 'prompt' and the first one's fields"):
        chat_task([{"messages": CHATS[0]}, {"prompt": "a"}])


def test_several_tokens_may_end_a_text() -> None:
    """All of the generation config's end tokens do, each with its own log-probability and reward."""
    several = model("llama", eos_token_id=[0, 2])
    several.generation_config.eos_token_id = [0, 2]
    env = task("llama", reference=several, max_new_tokens=8)
    assert env.unwrapped.mdp.eos_token_ids == [0, 2]
    rollout = collect(env, drifted(env), 64, generator=new_generator("cpu", 0))
    last = rollout.tokens.gather(1, rollout.mask.sum(dim=1, keepdim=True) - 1).squeeze(1)
    assert set(last[rollout.stopped].tolist()) == {0, 2}
    assert not torch.isin(rollout.tokens[:, :-1][rollout.mask[:, 1:]], torch.tensor([0, 2])).any()
    assert rollout.log_probs[rollout.mask].all()


@every_shape
@pytest.mark.parametrize("separate_critic", [False, True])
def test_checkpointing_keeps_less_and_learns_the_same(kind: str, separate_critic: bool) -> None:
    """The same gradient within 1e-5, dropout in the config or not, and fewer numbers kept for the backward pass."""
    env = task(kind)
    policy = drifted(env, separate_critic=separate_critic)
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    found, kept = [], []
    for checkpointing in (False, True):
        if checkpointing:
            policy.gradient_checkpointing_enable()
        agent = PPO(policy, env, n_epochs=1, n_episodes=16, learning_rate=0.0, seed=0)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.numel()), x)[1], lambda x: x):
            _losses = list(agent.losses(rollout, rollout.rewards, rollout.rewards))  # keeps their graphs alive
        kept.append(sum(sizes))
        assert agent.train(rollout)["val/ratio_error_max"] < 1e-5
        found.append([p.grad.clone() for p in policy.parameters()])
    assert kept[1] < kept[0] / 2
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=1e-5)
    assert not any(layer.training for layer in policy.modules())
    collect(env, policy, 4)  # and the cache still serves sampling


def test_a_layers_own_dropout_stays_off() -> None:
    """Some layers (OPT's) drop out by themselves rather than by a module inside them: not when checkpointed either."""
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


def test_what_cannot_be_a_policy_is_refused() -> None:
    """A model without checkpointing, and more tokens than logits."""
    policy = TransformerPolicy(model("gpt2"))
    policy.model.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no gradient checkpointing"):
        policy.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match=r"vocabulary of 5 tokens, the tokenizer one of 6"):
        task("gpt2", reference=model("gpt2", vocab_size=5))


def test_encoders_are_refused(tmp_path: Path) -> None:
    """BERT's kind can be loaded as a causal language model, but sees what comes next: a wrong log-probability."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    encoder = BertLMHeadModel(BertConfig(vocab_size=PADDED, initializer_range=0.5, **sizes)).eval()
    ids = torch.tensor([[3, 4], [3, 5]])
    with torch.no_grad():
        ahead = encoder(ids).logits[:, 0]
    assert not torch.allclose(ahead[0], ahead[1], atol=1e-3)  # the fault itself
    with pytest.raises(ValueError, match="BertLMHeadModel sees what comes after a token"):
        check_causal(encoder)
    encoder.save_pretrained(tmp_path / "bert")
    for load in (TransformerPolicy.from_pretrained, lambda path: task("gpt2", reference=path)):
        with pytest.raises(ValueError, match="so it is no causal language model"):
            load(str(tmp_path / "bert"))
    T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="t5' holds no causal language model.*but a t5"):
        task("gpt2", reference=str(tmp_path / "t5"))
    for kind in CONFIGS:  # controls
        check_causal(model(kind).eval())


def test_generate_samples_from_the_policy(tmp_path: Path) -> None:
    """A checkpoint says how it is sampled from: at its temperature, and no token that the tokenizer has not."""
    policy = TransformerPolicy.for_env(task("llama"), temperature=0.5)
    policy.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    ids = torch.tensor([[3, 4]])
    torch.manual_seed(0)
    drawn = plain.generate(ids, max_new_tokens=1, num_return_sequences=4000, top_k=0)[:, -1]
    found = torch.bincount(drawn, minlength=PADDED) / len(drawn)
    with torch.no_grad():
        expected = policy.log_softmax(policy.next_token_logits(ids, torch.ones_like(ids)) * 0.5)[0].exp()
    assert not found[len(WORDS) :].any()
    torch.testing.assert_close(found[: len(WORDS)], expected, rtol=0, atol=0.04)
    assert (expected.sqrt() / expected.sqrt().sum() - expected).abs().max() > 0.1  # control: T = 1 is another


def test_a_model_without_a_head_is_refused(tmp_path: Path) -> None:
    """A classifier has no weights for the next token; transformers would draw them at random."""
    small = LlamaConfig(vocab_size=PADDED, tie_word_embeddings=False, num_labels=1, pad_token_id=0, **SMALL)
    LlamaForSequenceClassification(small).save_pretrained(tmp_path)
    for load in (TransformerPolicy.from_pretrained, lambda path: task("gpt2", reference=path)):
        with pytest.raises(ValueError, match=r"holds no whole causal language model: lm_head.weight is missing"):
            load(str(tmp_path))


@every_shape
def test_it_learns(kind: str) -> None:
    """A few updates of REINFORCE raise the return of any of them."""
    env = task(kind, kl_coef=0.01)
    policy = TransformerPolicy.for_env(env)
    returns = lambda: float(collect(env, policy, 256, generator=new_generator("cpu", 7)).rewards.sum(dim=1).mean())  # noqa: E731
    before = returns()
    REINFORCE(policy, env, learning_rate=1e-2, n_episodes=32, seed=0).learn(3000)
    assert returns() > before + 0.3
