"""What users may pass as a reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Model, LlamaForCausalLM

from tests.helpers.adapters import peft_model
from tests.helpers.models import model
from tests.helpers.tasks import make, words, zero
from textenv.references import CausalLMReference, TableReference
from textenv.references.checks import as_reference
from textenv.testing import play


def test_any_object_with_log_probs_is_a_reference() -> None:
    """A reference is anything with log_probs(input_ids, attention_mask) -> [B, V]; it requires nothing else."""

    class CustomReference:
        def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
            return np.log(np.tile([0.1, 0.2, 0.3, 0.4], (len(input_ids), 1)))

    episode = play(make(words(reference=CustomReference(), reward=zero, kl_coef=1.0)), 0, "c")
    assert np.exp(episode.rewards) == pytest.approx([0.4, 0.1])


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize(("factor", "message"), [(-np.inf, "allows no token"), (np.log(0.5), "sum to 0.5")])
def test_the_prompt_that_a_reference_fails_on_is_named(bad: int, factor: float, message: str) -> None:
    """Of several prompts the one whose probabilities are wrong, wherever it is in the list."""
    prompts = ["a b", "b b", "c b"]

    class Broken:
        def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
            uniform = np.full((len(input_ids), 4), np.log(0.25))
            return np.where(input_ids[:, :1] == bad + 1, factor + uniform, uniform)

    with pytest.raises(ValueError, match=f"{prompts[bad]}.*{message}|{message}.*{prompts[bad]}"):
        make(words(reference=Broken(), prompts=prompts))


def test_without_a_reference_every_token_is_equally_likely() -> None:
    """reference=None is uniform."""
    assert np.exp(play(make(words(reference=None)), 0, "c").ref_log_probs) == pytest.approx([0.25, 0.25])


@pytest.mark.parametrize("kind", [LlamaForCausalLM, GPT2Model, TableReference, CausalLMReference, dict])
def test_a_class_is_no_reference(kind: type) -> None:
    """Neither of models nor of references: an object of it is needed."""
    with pytest.raises(TypeError, match=f"must be an object, got the class {kind.__name__}; make or load"):
        make(words(reference=kind))


class Around:
    """Something with a causal language model inside, as a policy is."""

    def __init__(self, inside: Any) -> None:
        self.model = inside


def test_a_policy_is_no_reference() -> None:
    """The message says what to pass. A language model has a part named `model` too, and is accepted."""
    from agents import TransformerPolicy  # the library itself does without agents

    for around in (TransformerPolicy(model("llama")), Around(model("gpt2"))):
        with pytest.raises(TypeError, match=f"got {type(around).__name__}.*pass its model: policy.model"):
            make(words(9, reference=around))
    with pytest.raises(TypeError, match="have log_probs.*got Around"):
        make(words(9, reference=Around(3)))
    assert as_reference(TransformerPolicy(model("llama")).model, 9).log_probs


@pytest.mark.parametrize("path", ["", " ", "\n"])
def test_an_empty_path_is_refused(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The working directory is not searched, even if it holds a model."""
    model("llama").float().save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="path or hub id of a reference must not be empty.*pass None"):
        as_reference(path, 9)
    assert as_reference(".", 9).log_probs  # control


def test_log_probs_must_be_a_method() -> None:
    """An object with a value of that name is no reference."""
    other = Around(3)
    other.log_probs = 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="have log_probs.*got Around"):
        make(words(reference=other))


LOG_PROBS = np.log(np.full(4, 0.25))


@pytest.mark.parametrize(
    "convert",
    [
        lambda rows: torch.tensor(rows),
        lambda rows: rows.tolist(),
        lambda rows: None,
        lambda rows: rows.astype(str),
        lambda rows: rows.astype(object),
        lambda rows: rows.astype(complex),
        lambda rows: (rows,),
    ],
    ids=["tensor", "list", "None", "strings", "objects", "complex", "tuple"],
)
@pytest.mark.parametrize("full_support", [False, True])
def test_log_probs_must_be_an_array(convert: Any, full_support: bool) -> None:
    """Anything else is refused when the environment is made; the array itself is accepted."""

    class Reference:
        def __init__(self, returned: Any) -> None:
            self.returned, self.full_support = returned, full_support

        def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.returned(np.tile(LOG_PROBS, (len(input_ids), 1)))

    with pytest.raises(ValueError, match="must return log-probabilities as a numpy array of floats, got"):
        make(words(reference=Reference(convert)))
    for dtype in (np.float16, np.float32, np.float64):
        make(words(reference=Reference(lambda rows: rows.astype(dtype))))  # noqa: B023


def test_an_adapter_that_is_deleted_or_disabled_is_named() -> None:
    """What is left is no adapter that could be merged; without it, and switched on again, the model is accepted."""
    pytest.importorskip("peft")
    deleted, disabled = peft_model("qwen2"), peft_model("qwen2")
    deleted.delete_adapter("default")
    disabled.base_model.disable_adapter_layers()
    for wrapped, message in (
        (deleted, r"has no adapter, as after delete_adapter\(\): pass .*model.unload\(\)"),
        (disabled, r"is disabled, .*enable_adapter_layers\(\) first, or .*model.unload\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            as_reference(wrapped, 9)
    with disabled.disable_adapter(), pytest.raises(ValueError, match="is disabled"):
        as_reference(disabled, 9)
    disabled.base_model.enable_adapter_layers()
    for accepted in (deleted.unload(), disabled):
        assert as_reference(accepted, 9).log_probs
