"""A `PeftModel` becomes a plain model that computes the same, whatever its adapter is and whatever weights are tied."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.adapters import config, layers, peft_model, perturbed, sound_settings
from tests.helpers.classifiers import random_classifier
from tests.helpers.models import model
from textenv.lm import frozen_copy, has_adapters, load_causal_lm, merge_adapters, probe_logits
from textenv.references import CausalLMReference

peft = pytest.importorskip("peft")
IDS = torch.tensor([[3, 1, 5, 0, 8, 2], [4, 4, 7, 6, 1, 3]])
CLOSE = 1e-5


@torch.no_grad()
def log_probs(module: Any) -> torch.Tensor:
    """log softmax of a model alone, float64 [B, L, V]."""
    return module.eval()(input_ids=IDS).logits.double().log_softmax(dim=-1)


def test_a_classifier_of_one_label_is_merged() -> None:
    """Its one logit has no range that rounding could be compared with."""
    peft = pytest.importorskip("peft")
    classifier = random_classifier("gpt2")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, task_type="SEQ_CLS")
    model = peft.get_peft_model(classifier, config).eval()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected = model(ids).logits
        torch.testing.assert_close(frozen_copy(model)(ids).logits, expected, rtol=0, atol=1e-5)
    assert expected.shape == (1, 1)


@pytest.mark.parametrize("kind", [pytest.param("llama", marks=pytest.mark.slow), "gpt2", "qwen2"])
@pytest.mark.parametrize("name", sorted(sound_settings("llama")))
def test_the_copy_computes_what_the_adapter_computes(kind: str, name: str, tmp_path: Path) -> None:
    """In memory, and saved and loaded; the original stays as it was, with its adapter and its tied weights."""
    original = peft_model(kind, **sound_settings(kind)[name])
    expected, tied = log_probs(original), original.config.tie_word_embeddings
    merged = frozen_copy(original)
    assert not has_adapters(merged) and has_adapters(original)
    assert (log_probs(merged) - expected).abs().max() < CLOSE
    assert torch.equal(log_probs(original), expected) and original.config.tie_word_embeddings == tied
    merged.save_pretrained(tmp_path)
    assert (log_probs(load_causal_lm(tmp_path)) - expected).abs().max() < 10 * CLOSE  # in float32
    assert (log_probs(model(kind)) - expected).abs().max() > 0.1  # control


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("name", ["output", "input", "input and output", "tokens of the output"])
def test_peft_itself_merges_into_both_of_two_tied_layers(kind: str, name: str) -> None:
    """The control of the last test: without untying the merged model is another one."""
    original = peft_model(kind, **sound_settings(kind)[name])
    assert (log_probs(copy.deepcopy(original).merge_and_unload()) - log_probs(original)).abs().max() > 1


@pytest.mark.parametrize(
    ("name", "tied"), [("all linear layers", True), ("tokens", True), ("output", False), ("whole input", False)]
)
def test_weights_stay_tied_where_the_adapter_leaves_them_equal(name: str, tied: bool) -> None:
    """One matrix, and the config says so; else two."""
    merged = frozen_copy(peft_model("qwen2", **sound_settings("qwen2")[name]))
    assert merged.config.tie_word_embeddings == tied
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", ["all linear layers", "output", "ia3", "loha", "two", "bfloat16"])
def test_a_reference_with_an_adapter_is_its_merged_model(kind: str, name: str) -> None:
    """Other adapters than LoRA can be merged too."""
    others = {
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "loha": lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"]),
    }
    original = peft_model(kind, others[name]() if name in others else config(**sound_settings(kind).get(name, {})))
    if name == "two":
        original.add_adapter("second", config())
        original.base_model.set_adapter(["default", "second"])
        perturbed(original)
    if name == "bfloat16":
        original = original.to(torch.bfloat16)
    expected = log_probs(original)
    reference = CausalLMReference(original)
    found = reference.token_log_probs(IDS, torch.ones_like(IDS), 4)
    tolerance = 0.3 if name == "bfloat16" else CLOSE
    assert (found - expected[:, 1:-1].gather(2, IDS[:, 2:, None]).squeeze(2)).abs().max() < tolerance
    assert (log_probs(model(kind)) - expected).abs().max() > 0.3  # control
    assert torch.equal(log_probs(original), expected)


def test_adapters_that_cannot_be_merged_are_refused() -> None:
    """Each in one sentence, and never the wrong model."""
    attention, _ = layers("qwen2")
    disabled = peft_model("qwen2")
    disabled.base_model.disable_adapter_layers()
    inside = peft_model("qwen2").get_base_model()
    cases = {
        "adds tokens": peft_model("qwen2", peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        "adds tokens of": peft_model("qwen2", peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
        "base layer has no bias": peft_model("qwen2", target_modules=["o_proj"], lora_bias=True),
        "aLoRA does not support merging": peft_model(
            "qwen2", target_modules=[attention], task_type="CAUSAL_LM", alora_invocation_tokens=[1]
        ),
        "computes something else": disabled,
        "has an adapter's layers inside": inside,
    }
    for message, original in cases.items():
        with pytest.raises(ValueError, match=message) as refused:
            CausalLMReference(original)
        assert "\n" not in str(refused.value)


def test_a_model_without_adapters_is_copied() -> None:
    """Nothing of it is shared; it has no adapter to merge."""
    original = model("qwen2")
    other = frozen_copy(original)
    assert torch.equal(probe_logits(original), probe_logits(other))
    assert not {p.data_ptr() for p in original.parameters()} & {p.data_ptr() for p in other.parameters()}
    with pytest.raises(ValueError, match="has an adapter's layers inside"):
        merge_adapters(original)
