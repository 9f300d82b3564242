"""Policies with an adapter: what was saved last is what is loaded; what cannot be saved is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from agents import PPO
from agents.policy import TransformerPolicy
from tests.helpers.adapters import adapted, config, peft_model, perturbed, sound_settings
from tests.helpers.models import model, task, tokenizer
from textenv.references import CausalLMReference

peft = pytest.importorskip("peft")
IDS = torch.randint(0, 6, (4, 7), generator=torch.Generator().manual_seed(0))
CLOSE = 1e-4  # a merged checkpoint is loaded in float32


def slow(kind: str) -> Any:
    """A parameter of slow tests."""
    return pytest.param(kind, marks=pytest.mark.slow)


@torch.no_grad()
def outputs(policy: TransformerPolicy) -> torch.Tensor:
    """log pi and V of the same completions, [2, B, T]."""
    return torch.stack([each.double() for each in policy.evaluate_actions(IDS, torch.ones_like(IDS), 5)])


def single(kind: str, **settings: Any) -> Any:
    """A task whose reference is in float32, as one that is loaded."""
    return task(kind, reference=model(kind).float(), **settings)


def reference_log_probs(env: Any) -> torch.Tensor:
    """log pi_ref of the same completions, [B, T]."""
    found: torch.Tensor = env.unwrapped.mdp.reference.token_log_probs(IDS, torch.ones_like(IDS), 5)
    return found


@pytest.mark.parametrize("kind", [slow("gpt2"), slow("llama"), "qwen2"])
@pytest.mark.parametrize("name", sorted(sound_settings("llama")))
def test_the_checkpoint_is_the_policy(kind: str, name: str, tmp_path: Path) -> None:
    """Merged, and on a reference, which is unchanged; the live policy is unchanged by being saved."""
    env = task(kind)
    before = reference_log_probs(env)
    policy = perturbed(TransformerPolicy.for_env(env, lora=config(**sound_settings(kind)[name])))
    expected = outputs(policy)
    assert (expected[0] - before).abs().max() > 0.1  # control: the adapter changes the policy
    policy.save_pretrained(tmp_path)
    assert torch.equal(outputs(policy), expected) and torch.equal(reference_log_probs(env), before)
    merged = TransformerPolicy.from_pretrained(tmp_path)
    assert not merged.has_adapter and (outputs(merged) - expected).abs().max() < CLOSE
    other = task(kind)
    again = TransformerPolicy.from_pretrained(tmp_path, reference=other.unwrapped.mdp.reference)
    assert again.has_adapter and (outputs(again) - expected).abs().max() < 1e-5
    assert torch.equal(reference_log_probs(other), before)
    copied = TransformerPolicy.for_env(other)  # of the weights below the adapter, with which it shares none
    assert not copied.has_adapter and (outputs(copied)[0] - before).abs().max() < 1e-5
    assert torch.equal(reference_log_probs(copy.deepcopy(other)), before)


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bias": ("must not train the weights below it", {"bias": "all"}),
    "bias of the layers": ("must not train the weights below it", {"bias": "lora_only"}),
    "pissa": ("must not change the weights below it", {"init_lora_weights": "pissa"}),
    "olora": ("must not change the weights below it", {"init_lora_weights": "olora"}),
    "more layers": ("must not change the weights below it|does not fit", {"layer_replication": [[0, 2], [1, 2]]}),
    "bias of the adapter": ("cannot be merged", {"target_modules": ["o_proj"], "lora_bias": True}),
    "invocation": ("cannot be merged", {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"}),
    "tied adapters": (
        "share their memory",
        {"target_modules": ["q_proj", "embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "frozen": ("must have parameters to train, got none", {"inference_mode": True}),
    "no such layer": ("does not fit the reference's model: Target modules", {"target_modules": ["absent"]}),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_adapter_that_cannot_be_saved_is_refused_when_it_is_made(name: str) -> None:
    """In one sentence; the reference is as it was, and takes a sound adapter afterwards."""
    message, settings = REFUSED[name]
    env = single("qwen2")
    before = reference_log_probs(env)
    with pytest.raises(ValueError, match=message) as refused:
        TransformerPolicy.for_env(env, lora=config(**({"target_modules": ["q_proj"]} | settings)))
    assert "\n" not in str(refused.value)
    assert torch.equal(reference_log_probs(env), before)
    policy = TransformerPolicy.for_env(env, lora=config())
    assert (outputs(policy)[0] - before).abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}])
def test_a_saved_adapter_that_would_change_the_reference_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """A bias in its file takes the place of the reference's; the reference is as it was. Control: without a bias."""
    for name, each in (("plain", {}), ("bias", settings)):
        peft_model("qwen2", target_modules=["q_proj"], **each).save_pretrained(tmp_path / name)
    env = task("qwen2")
    before = reference_log_probs(env)
    with pytest.raises(ValueError, match="must not (change|train) the weights below it"):
        TransformerPolicy.from_pretrained(tmp_path / "bias", reference=env.unwrapped.mdp.reference)
    assert torch.equal(reference_log_probs(env), before)
    TransformerPolicy.from_pretrained(tmp_path / "plain", reference=env.unwrapped.mdp.reference)


@pytest.mark.parametrize("kind", [slow("llama"), "qwen2"])
@pytest.mark.parametrize("name", ["all linear layers", "output", "whole input", "tokens"])
def test_a_peft_model_is_a_policy(kind: str, name: str, tmp_path: Path) -> None:
    """It samples, is trained, saved, and loaded: merged, and on the same weights, where training goes on alike."""
    wrapped = peft_model(kind, **sound_settings(kind)[name]).float()
    policy = TransformerPolicy(wrapped, vocab_size=6)
    before = outputs(policy)
    agent = PPO(policy, single(kind), learning_rate=1e-2, n_episodes=16, seed=0).learn(100)
    expected = outputs(policy)
    assert (expected - before).abs().max() > 0.1
    agent.save(tmp_path)
    assert (outputs(PPO.load(tmp_path).policy) - expected).abs().max() < CLOSE
    again = PPO.load(tmp_path, single(kind))
    assert again.policy.has_adapter and (outputs(again.policy) - expected).abs().max() < 1e-5
    for each in (agent, again):
        each.learn(50, reset_num_timesteps=False)
    assert (outputs(again.policy) - outputs(policy)).abs().max() < CLOSE


def test_a_peft_model_that_cannot_be_a_policy_is_refused() -> None:
    """In one sentence that says what to do."""
    merged = peft_model("qwen2")
    merged.merge_adapter()
    two = peft_model("qwen2")
    two.add_adapter("second", config())
    frozen = peft_model("qwen2")
    frozen.requires_grad_(False)
    disabled, deleted = peft_model("qwen2"), peft_model("qwen2")
    disabled.base_model.disable_adapter_layers()
    deleted.delete_adapter("default")
    cases = {
        "named 'default'": peft.get_peft_model(model("qwen2"), config(), adapter_name="mine"),
        "must have one adapter.*got default, second": two,
        r"unmerge_adapter\(\) first": merged,
        r"disabled while it is trained: .*enable_adapter_layers\(\)": disabled,
        r"has none, as after delete_adapter\(\).*model.unload\(\)": deleted,
        "is_trainable=True": frozen,
        "must not train the weights below it": peft_model("qwen2", target_modules=["q_proj"], bias="all"),
        "must be a LoRA adapter": peft_model("qwen2", peft.LoHaConfig(r=2, target_modules=["q_proj"])),
        "must not add tokens": peft_model(
            "qwen2", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
        ),
        "adapter's layers inside": peft_model("qwen2").get_base_model(),
    }
    for message, wrapped in cases.items():
        with pytest.raises(ValueError, match=message) as refused:
            TransformerPolicy(wrapped)
        assert "\n" not in str(refused.value)


def test_a_second_adapter_is_refused_when_the_policy_is_saved(tmp_path: Path) -> None:
    """It would not be in the checkpoint, which stays the earlier one."""
    policy = adapted(task("qwen2"), 0.3)
    policy.save_pretrained(tmp_path)
    expected = outputs(policy)
    policy.model.add_adapter("second", config())
    policy.model.set_adapter("second")
    with pytest.raises(ValueError, match="must have one adapter"):
        policy.save_pretrained(tmp_path)
    assert (outputs(TransformerPolicy.from_pretrained(tmp_path)) - expected).abs().max() < CLOSE


@pytest.mark.parametrize("kind", [slow("llama"), "qwen2"])
def test_a_task_whose_reference_has_an_adapter(kind: str, tmp_path: Path) -> None:
    """The policy starts at it, as an adapter and as a copy, and is trained, saved and loaded."""
    sft = peft_model(kind, **sound_settings(kind)["output"]).float()
    for lora in (config(), None):
        env = task(kind, reference=sft)
        policy = TransformerPolicy.for_env(env, lora=lora)
        assert (outputs(policy)[0] - reference_log_probs(env)).abs().max() < 1e-5
        assert (outputs(policy)[0] - reference_log_probs(single(kind))).abs().max() > 0.3  # control
        agent = PPO(policy, env, learning_rate=1e-2, n_episodes=16, seed=0).learn(50)
        agent.save(tmp_path)
        for load in (PPO.load(tmp_path), PPO.load(tmp_path, task(kind, reference=sft))):
            assert (outputs(load.policy) - outputs(policy)).abs().max() < CLOSE


def test_an_adapter_is_not_loaded_onto_other_weights(tmp_path: Path) -> None:
    """Those of another reference, also where only layers differ that the adapter targets."""
    env = task("qwen2")
    adapted(env, 0.1).save_pretrained(tmp_path)
    other = task("qwen2", reference=peft_model("qwen2", target_modules=["q_proj"]))
    before = reference_log_probs(other)
    with pytest.raises(ValueError, match="was trained on other weights than the reference's"):
        TransformerPolicy.from_pretrained(tmp_path, reference=other.unwrapped.mdp.reference)
    assert torch.equal(reference_log_probs(other), before)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # controls
        same = task("qwen2", reference=model("qwen2").to(dtype))
        assert TransformerPolicy.from_pretrained(tmp_path, reference=same.unwrapped.mdp.reference).has_adapter


def test_a_plain_adapter_folder_is_loaded_onto_a_reference(tmp_path: Path) -> None:
    """The caller gives the base: nothing is looked up. Without one it is refused."""
    wrapped = peft_model("qwen2", **sound_settings("qwen2")["output"])
    expected = outputs(TransformerPolicy(wrapped, vocab_size=9))
    wrapped.save_pretrained(tmp_path)
    reference = CausalLMReference(model("qwen2"))
    loaded = TransformerPolicy.from_pretrained(tmp_path, reference=reference)
    assert loaded.has_adapter and (outputs(loaded) - expected).abs().max() < 1e-5
    with pytest.raises(ValueError, match="holds an adapter.*not loaded unasked"):
        TransformerPolicy.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must not change the weights below it.*embeddings of another model"):
        TransformerPolicy.from_pretrained(tmp_path, reference=CausalLMReference(model("gpt2")))
    peft_model("qwen2", target_modules=["q_proj"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not fit the reference's model"):
        TransformerPolicy.from_pretrained(tmp_path, reference=CausalLMReference(model("gpt2")))


@pytest.mark.parametrize("name", ["all linear layers", "input", "whole input", "tokens"])
def test_a_separate_critic_of_an_adapter_is_saved_too(name: str, tmp_path: Path) -> None:
    """Merged, for `evaluate` and `sample`, and as an adapter whose training goes on alike."""
    settings = sound_settings("qwen2")[name]
    env = single("qwen2")
    policy = TransformerPolicy.for_env(env, lora=config(**settings), separate_critic=True)
    agent = PPO(policy, env, learning_rate=1e-2, n_episodes=16, seed=0).learn(60)
    expected = outputs(policy)
    assert expected[1].abs().max() > 0.1
    agent.save(tmp_path)
    merged, again = PPO.load(tmp_path), PPO.load(tmp_path, single("qwen2"))
    assert merged.policy.critic is not None and (outputs(merged.policy) - expected).abs().max() < CLOSE
    assert (outputs(again.policy) - expected).abs().max() < 1e-5
    for each in (agent, again):
        each.learn(40, reset_num_timesteps=False)
    assert (outputs(again.policy) - outputs(policy)).abs().max() < 1e-5


def fill_with_others_files(folder: Path, kind: str) -> None:
    """A folder in which something else was saved before, of every kind that transformers and peft write."""
    if kind == "shards":
        model("llama").save_pretrained(folder, max_shard_size="10KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    elif kind == "adapter folder":
        peft_model("qwen2").save_pretrained(folder)
    elif kind == "settings":
        GenerationConfig(temperature=9.0, do_sample=True, suppress_tokens=[1]).save_pretrained(folder)
    elif kind == "adapter below":
        peft_model("qwen2").save_pretrained(folder / "adapter")
    else:
        adapted(task("qwen2"), 0.3, separate_critic=kind == "adapter with a critic").save_pretrained(folder)
        if kind == "no manifest":
            (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    "kind",
    ["shards", "adapter folder", "settings", "adapter below", "adapter", "no manifest", "adapter with a critic"],
)
@pytest.mark.parametrize("last", ["policy", "agent", "policy with an adapter"])
def test_nothing_that_was_there_before_comes_back(kind: str, last: str, tmp_path: Path) -> None:
    """Whatever was in the folder, the policy that was saved last is loaded: with a reference, without, as settings."""
    fill_with_others_files(tmp_path, kind)
    env = single("qwen2")
    policy = perturbed(TransformerPolicy.for_env(env, lora=config() if last == "policy with an adapter" else None), 0.1)
    expected = outputs(policy)
    PPO(policy, env, n_episodes=4).save(tmp_path) if last == "agent" else policy.save_pretrained(tmp_path)
    for reference in (None, single("qwen2").unwrapped.mdp.reference):
        loaded = TransformerPolicy.from_pretrained(tmp_path, reference=reference)
        assert loaded.critic is None and loaded.has_adapter == (policy.has_adapter and reference is not None)
        assert (outputs(loaded) - expected).abs().max() < CLOSE
    settings = GenerationConfig.from_pretrained(tmp_path)
    assert settings.temperature in (None, 1.0) and settings.suppress_tokens == [6, 7, 8]


def test_no_file_of_another_tokenizer_comes_back(tmp_path: Path) -> None:
    """An agent's folder has its own tokenizer alone, as in an empty folder."""
    env = single("qwen2")
    agent = PPO(TransformerPolicy.for_env(env), env, n_episodes=4)
    other = tokenizer()
    other.chat_template = {"default": "other {{ messages }}", "tool_use": "other"}
    other.add_tokens(["other"])
    other.save_pretrained(tmp_path / "used")
    (tmp_path / "used" / "special_tokens_map.json").write_text(json.dumps({"eos_token": "a"}))
    (tmp_path / "used" / "added_tokens.json").write_text(json.dumps({"others": 6}))
    assert AutoTokenizer.from_pretrained(tmp_path / "used").chat_template  # control
    for name in ("used", "empty"):
        agent.save(tmp_path / name)
    used, empty = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("used", "empty"))
    assert used.get_vocab() == empty.get_vocab() and used.special_tokens_map == empty.special_tokens_map
    assert used.chat_template is None
