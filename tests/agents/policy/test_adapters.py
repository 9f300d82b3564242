"""Adapters on the reference's own weights: the weights are shared, and the reference is unchanged."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from agents import GRPO, PPO, REINFORCE
from agents.policy import TransformerPolicy
from agents.policy.adapters import load_adapter
from agents.sampling import collect, new_generator
from tests.helpers.adapters import adapted, config
from tests.helpers.models import CONFIGS, arguments, task
from textenv.testing import play

peft = pytest.importorskip("peft")
every_shape = pytest.mark.parametrize("kind", sorted(CONFIGS))


@every_shape
def test_policy_and_reference_share_their_weights(kind: str) -> None:
    """The policy's weights have the reference's addresses; only the adapter and the value head are trained."""
    env = task(kind)
    reference = env.unwrapped.mdp.reference.model
    theirs = {parameter.data_ptr() for parameter in reference.parameters()}
    policy = TransformerPolicy.for_env(env, lora=config())
    others = [p for name, p in policy.model.named_parameters() if "lora_" not in name]
    assert {parameter.data_ptr() for parameter in others} == theirs
    agent = PPO(policy, env)
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("value_head.") for name in names)
    assert {id(p) for group in agent.optimization.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in policy.parameters() if p.requires_grad
    }


@every_shape
def test_the_reference_computes_without_the_adapter(kind: str) -> None:
    """KL 0 at first. With another adapter the policy differs, and every interface of the reference is bit-identical."""
    env = task(kind)
    before = collect(env, TransformerPolicy.for_env(env), 16, generator=new_generator("cpu", 0))
    policy = adapted(env)
    start = collect(env, policy, 16, generator=new_generator("cpu", 0))
    assert torch.equal(start.tokens, before.tokens) and start.kl.abs().max() < 1e-5
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
    rollout = collect(env, policy, 16, generator=new_generator("cpu", 0))
    assert rollout.kl.abs().max() > 0.1
    env.unwrapped.bind_policy(policy.next_token_logits)
    plain = task(kind)
    for row in range(len(rollout)):
        tokens = rollout.tokens[row][rollout.mask[row]].tolist()
        episode, untouched = (play(e, str(rollout.prompts[row]), tokens) for e in (env, plain))
        np.testing.assert_array_equal(episode.ref_log_probs, untouched.ref_log_probs)
        np.testing.assert_allclose(rollout.ref_log_probs[row][rollout.mask[row]], episode.ref_log_probs, atol=1e-5)
        np.testing.assert_allclose(rollout.rewards[row][rollout.mask[row]], episode.rewards, atol=1e-5)
    again = collect(env, TransformerPolicy.for_env(env), 16, generator=new_generator("cpu", 0))  # as baselines do
    assert torch.equal(again.tokens, before.tokens) and again.kl.abs().max() < 1e-5
    copied = copy.deepcopy(env.unwrapped.mdp.reference)
    ids, mask = rollout.input_ids[:, :-1].numpy(), rollout.attention_mask[:, :-1].numpy()
    np.testing.assert_array_equal(copied.log_probs(ids, mask), plain.unwrapped.mdp.reference.log_probs(ids, mask))


def test_a_batch_steps_as_without_the_adapter() -> None:
    """Rows end at different times and are prefilled again while others are in progress: the same rewards."""
    plain_env, adapted_env = (
        gym.make_vec("textenv/Text-v0", num_envs=6, autoreset_mode="SameStep", **arguments("llama")) for _ in range(2)
    )
    adapted(adapted_env, scale=0.5)
    rng = np.random.default_rng(0)
    ends = np.zeros(6)
    for envs in (plain_env, adapted_env):
        envs.reset(seed=0)
    for _ in range(12):
        actions = rng.integers(0, 6, 6)
        (_, rewards, terminated, *_), (_, expected, *_) = (envs.step(actions) for envs in (adapted_env, plain_env))
        np.testing.assert_allclose(rewards, expected, atol=1e-5)
        ends += terminated
    assert len(set(ends)) > 1 and ends.min() > 0


def test_a_new_adapter_is_reproducible() -> None:
    """A seed determines the adapter, whatever the state of the global generator, which does not change."""
    global_seeds = itertools.count()

    def new(seed: int) -> list[torch.Tensor]:
        env = task("llama")
        torch.manual_seed(next(global_seeds))
        policy = TransformerPolicy.for_env(env, lora=config(), seed=seed)
        return [p.detach() for name, p in policy.named_parameters() if "lora_A" in name]

    same, again, other = new(0), new(0), new(1)
    assert all(map(torch.equal, same, again)) and not any(map(torch.equal, same, other))
    env = task("llama")
    before = torch.get_rng_state()
    TransformerPolicy.for_env(env, lora=config())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [PPO, REINFORCE, GRPO])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_raises_the_return_and_keeps_the_reference(kind: Any, checkpointing: bool) -> None:
    """The return rises; the reference's weights are bit-identical, with and without gradient checkpointing."""
    env = task("llama", kl_coef=0.01)
    reference = env.unwrapped.mdp.reference.model
    before = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    policy = TransformerPolicy.for_env(env, lora=config())
    if checkpointing:
        policy.gradient_checkpointing_enable()
    returns = lambda: float(collect(env, policy, 256, generator=new_generator("cpu", 7)).rewards.sum(dim=1).mean())  # noqa: E731
    start = returns()
    agent = kind(policy, env, learning_rate=1e-2, n_episodes=32, seed=0).learn(2000)
    assert returns() > start + 0.2 and agent.num_updates > 10
    after = {name.replace(".base_layer", ""): tensor for name, tensor in reference.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_first_ratio_is_one() -> None:
    """Also with dropout in the adapter's config."""
    env = task("qwen2")
    policy = TransformerPolicy.for_env(env, lora=config(lora_dropout=0.5))
    agent = PPO(policy, env, n_epochs=1, n_episodes=16, seed=0)
    assert agent.train(agent.collect())["val/ratio_error_max"] < 1e-5


def test_it_is_saved_merged_and_resumes_as_an_adapter(tmp_path: Path) -> None:
    """AutoModelForCausalLM loads the checkpoint; `load` resumes training with an environment, and predicts without."""
    env = task("llama")
    agent = PPO(TransformerPolicy.for_env(env, lora=config()), env, learning_rate=1e-2, n_episodes=16, seed=0).learn(
        200
    )
    agent.save(tmp_path)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = agent.policy.model(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        torch.testing.assert_close(plain(ids).logits, expected, rtol=0, atol=1e-6)
        assert not torch.allclose(env.unwrapped.mdp.reference.copy_model()(ids).logits, expected, atol=1e-2)
    without_env = PPO.load(tmp_path)
    assert not without_env.policy.has_adapter
    other = task("llama")
    again = PPO.load(tmp_path, other)
    assert again.policy.has_adapter
    for each in (agent, again):
        each.learn(100, reset_num_timesteps=False)
    ours, theirs = ({n: p for n, p in a.policy.named_parameters() if "lora_" in n} for a in (agent, again))
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        torch.testing.assert_close(theirs[name], parameter, rtol=0, atol=1e-5)


@pytest.mark.parametrize("manifest", [True, False], ids=["this format", "without a manifest"])
def test_an_adapter_does_not_come_back(manifest: bool, tmp_path: Path) -> None:
    """A whole policy is saved over an adapter: it is loaded whole, on a reference too."""
    adapted(task("gpt2"), scale=0.1).save_pretrained(tmp_path)
    if not manifest:  # nothing says whose the files are
        (tmp_path / "manifest.json").unlink()
    whole = TransformerPolicy.for_env(task("gpt2"))
    whole.save_pretrained(tmp_path)
    assert (tmp_path / "adapter").is_dir() != manifest
    loaded = TransformerPolicy.from_pretrained(tmp_path, reference=task("gpt2").unwrapped.mdp.reference)
    assert not loaded.has_adapter
    for one, other in zip(whole.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one.float(), other)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_separate_critic_is_an_adapter_too(kind: str) -> None:
    """It has its own weights, of which only its adapter is trained."""
    env = task(kind)
    policy = TransformerPolicy.for_env(env, lora=config(), separate_critic=True)
    assert policy.critic is not None
    assert all("lora_" in name for name, p in policy.critic.named_parameters() if p.requires_grad)
    before = {name: p.clone() for name, p in policy.critic.named_parameters()}
    PPO(policy, env, learning_rate=1e-2, n_episodes=16, seed=0).learn(100)
    assert all(torch.equal(p, before[name]) == ("lora_" not in name) for name, p in policy.critic.named_parameters())


def test_references_that_cannot_have_an_adapter_are_refused() -> None:
    """A table, and weights that have an adapter already."""
    with pytest.raises(ValueError, match="needs a causal language model as reference, got TableReference"):
        TransformerPolicy.for_env(gym.make("textenv/Toy-v0"), lora=config())
    env = task("llama")
    TransformerPolicy.for_env(env, lora=config())
    with pytest.raises(ValueError, match="have an adapter already: make another environment"):
        TransformerPolicy.for_env(env, lora=config())


def test_an_adapter_that_adds_tokens_is_refused() -> None:
    """Its sequences are longer than the scored ones; the reference is left without an adapter."""
    env = task("llama")
    with pytest.raises(ValueError, match="must not add tokens of its own, as PromptTuningConfig does"):
        TransformerPolicy.for_env(env, lora=peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert TransformerPolicy.for_env(env, lora=config()).has_adapter


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "must not have megatron_config, .*imports"),
        ({"corda_config": {"cache_file": "x.pt"}}, "must not have corda_config"),
        ({"lora_ga_config": {"cache_file": "x.pt"}}, "must not have lora_ga_config"),
        ({"peft_type": "XLORA"}, "must be a LoRA adapter, got 'XLORA'"),
        ({"peft_type": None}, "must be a LoRA adapter, got None"),
    ],
)
def test_a_saved_adapter_that_names_code_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """Before peft reads the folder; the merged model beside it needs no adapter."""
    env = task("gpt2")
    TransformerPolicy.for_env(env, lora=config()).model.save_pretrained(tmp_path)
    load_adapter(task("gpt2").unwrapped.mdp.reference, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        load_adapter(task("gpt2").unwrapped.mdp.reference, tmp_path)


def test_weights_of_an_adapter_in_a_pickle_are_refused(tmp_path: Path) -> None:
    """adapter_model.bin is not read; other adapters than LoRA are refused when they are new."""
    env = task("gpt2")
    TransformerPolicy.for_env(env, lora=config()).model.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is missing; .* a pickle, which is not read"):
        load_adapter(task("gpt2").unwrapped.mdp.reference, tmp_path)
    with pytest.raises(ValueError, match="must be a LoRA adapter, got .*IA3"):
        TransformerPolicy.for_env(task("gpt2"), lora=peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[]))
