"""A folder of a model, tokenizer or classifier runs no code and reads no pickle, whatever its files say."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.dynamic_module_utils import resolve_trust_remote_code

from agents.policy import TransformerPolicy
from tests.helpers.classifiers import random_classifier, word_tokenizer
from textenv.lm import load_causal_lm, load_tokenizer
from textenv.lm.trust import check_folder, never_asking
from textenv.references import CausalLMReference
from textenv.rewards import RewardModel

CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

class OwnConfig(GPT2Config):
    model_type = "own"

class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig

class OwnClassifier(GPT2ForSequenceClassification):
    config_class = OwnConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
TOKENIZER_MAP = {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}
NATIVE_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnClassifier"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small GPT-2 with its tokenizer, and a module that leaves a mark when it is imported."""
    torch.manual_seed(0)
    model = tmp_path / "model"
    config = GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(model)
    word_tokenizer(eos_token="[END]").save_pretrained(model)
    (model / "own.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return model


def change(path: Path, **settings: Any) -> None:
    """Changes settings in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


def test_code_is_run_only_if_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    """A model and a tokenizer with code of their own are refused, and loaded where they are trusted."""
    change(folder / "config.json", model_type="own", auto_map=AUTO_MAP)
    change(folder / "tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="OwnTokenizer")
    for load in (load_causal_lm, load_tokenizer, CausalLMReference):
        with pytest.raises(ValueError, match=r"Python code.*trust_remote_code=True \(--trust-remote-code\)"):
            load(folder)
    assert not (tmp_path / "ran").exists()
    assert type(load_causal_lm(folder, trust_remote_code=True)).__name__ == "OwnModel"
    assert (tmp_path / "ran").exists()
    assert type(CausalLMReference(folder, trust_remote_code=True).model).__name__ == "OwnModel"
    assert type(load_tokenizer(folder, trust_remote_code=True)).__name__ == "OwnTokenizer"


def test_code_that_is_not_needed_is_ignored(folder: Path, tmp_path: Path) -> None:
    """Where transformers has the model itself, what `auto_map` names is not imported."""
    change(folder / "config.json", auto_map=AUTO_MAP)
    assert type(load_causal_lm(folder)).__name__ == "GPT2LMHeadModel"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config.json", {"quantization_config": {"quant_method": "quark"}}, "import a quantization library"),
        ("config.json", {"text_config": {"quantization_config": {"quant_method": "awq"}}}, "a quantization library"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "download and run a kernel"),
        ("config.json", {"_attn_implementation": {"": "evil/kernel:main"}}, "download and run a kernel"),
        ("config.json", {"experts_implementation": "evil/kernel"}, "download and run a kernel"),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "another configuration"),
        ("config.json", {"fusion_config": {"patch_embeddings": True}}, "the code of layers"),
        ("config.json", {"transformers_weights": "adapter_model.bin"}, "unpickle weights"),
        ("config.json", {"tokenizer_class": "AutoModel"}, "another class than a tokenizer's"),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}, "another class than a tokenizer's"),
        ("tokenizer_config.json", {"tokenizer_class": "RagRetriever"}, "another class than a tokenizer's"),
        ("tokenizer_config.json", {"tokenizer_class": "pipeline"}, "another class than a tokenizer's"),
        ("generation_config.json", {"attn_implementation": "evil/kernel"}, "download and run a kernel"),
    ],
)
def test_settings_that_name_code_are_refused(folder: Path, file: str, settings: dict[str, Any], message: str) -> None:
    """The error has the file, the setting and what it would do; without it the folder is loaded."""
    load_causal_lm(folder)
    load_tokenizer(folder)
    change(folder / file, **settings)
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ValueError, match=rf"{file}: '\w+' = .*{message}"):
            load(folder)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"])
def test_tokenizers_of_any_name_are_loaded(folder: Path, name: str) -> None:
    """The classes of tokenizers pass the check."""
    vocabulary = load_tokenizer(folder).get_vocab()
    change(folder / "tokenizer_config.json", tokenizer_class=name)
    assert vocabulary.items() <= load_tokenizer(folder).get_vocab().items()  # GPT-2's adds its own end token


class Opens:
    """Unpickling it leaves a mark."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (self.marker,))  # type: ignore[return-value]


def evil_weights(path: Path, marker: Path) -> None:
    """Writes a pickle that leaves a mark."""
    path.write_bytes(pickle.dumps({"lm_head.weight": Opens(marker)}))


def test_weights_in_a_pickle_are_refused(folder: Path, tmp_path: Path) -> None:
    """pytorch_model.bin alone, and as a shard that an index of safetensors names."""
    pickle.loads(pickle.dumps(Opens(tmp_path / "control")))
    assert (tmp_path / "control").exists()
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    evil_weights(folder / "pytorch_model.bin", tmp_path / "ran")
    for trusted in (False, True):
        with pytest.raises(
            ValueError, match=r"pytorch_model.bin is a pickle.*only safetensors are read.*use_safetensors"
        ):
            load_causal_lm(folder, trust_remote_code=trusted)
    (folder / "pytorch_model.bin").unlink()
    evil_weights(folder / "shard.bin", tmp_path / "ran")
    for shard in ("shard.bin", "../model/shard.bin", str(folder / "x.safetensors"), 3):
        index = {"metadata": {"total_size": 1}, "weight_map": {"lm_head.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"model.safetensors.index.json must name safetensors files of its folder"):
            load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"nothing to load at .*model\.safetensors"):
        load_causal_lm(folder)
    weights.write_bytes(kept)
    evil_weights(folder / "pytorch_model.bin", tmp_path / "ran")  # is not read where there are safetensors
    load_causal_lm(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("files", [("adapter_config.json",), ("adapter_model.bin",), ("one/adapter_config.json",)])
@pytest.mark.parametrize("whole", [True, False], ids=["beside a model", "alone"])
def test_an_adapter_in_the_place_of_a_model_is_refused(files: tuple[str], whole: bool, folder: Path) -> None:
    """It names its base model, which may be anywhere. Beside a model, files that transformers does not read stay."""
    load_causal_lm(folder)
    load_tokenizer(folder)
    if not whole:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps({"base_model_name_or_path": "evil/model"}))
    loads: list[Callable[[Path], Any]] = [load_causal_lm, load_tokenizer, CausalLMReference]
    for load in [*loads, TransformerPolicy.from_pretrained, RewardModel]:
        if whole and files != ("adapter_config.json",):
            check_folder(folder)
        else:
            with pytest.raises(ValueError, match="holds an adapter.*not loaded unasked.*merge the two") as refused:
                load(folder)
            assert "\n" not in str(refused.value)


def test_the_command_that_merges_an_adapter(folder: Path, tmp_path: Path) -> None:
    """The one in the refusal: what it saves is the model with the adapter, of tied weights too."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "lm_head"], init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_causal_lm(folder), config).eval()
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="holds an adapter") as refused:
        load_causal_lm(tmp_path / "adapter")
    command = str(refused.value).split('python -c "')[1].split('"')[0]
    exec(command, {"FOLDER": str(tmp_path / "adapter"), "NEW_FOLDER": str(tmp_path / "merged")})
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        expected, base = model(ids).logits, load_causal_lm(folder)(ids).logits
        torch.testing.assert_close(load_causal_lm(tmp_path / "merged")(ids).logits, expected, rtol=0, atol=1e-5)
    assert (base - expected).abs().max() > 0.01  # control


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, "\udcff"])
def test_damaged_settings_are_named(folder: Path, content: str) -> None:
    """The error names the file."""
    (folder / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"config.json must be a JSON object"):
        load_causal_lm(folder)


def test_classifiers_run_no_code(tmp_path: Path, folder: Path) -> None:
    """A reward model is loaded in the same way; its code is run if it is trusted."""
    judge = tmp_path / "judge"
    random_classifier("gpt2").save_pretrained(judge)
    word_tokenizer(eos_token="[END]").save_pretrained(judge)
    RewardModel(judge)
    shutil.copy(folder / "own.py", judge)
    change(judge / "config.json", model_type="own", auto_map=NATIVE_MAP)
    with pytest.raises(ValueError, match="--trust-remote-code"):
        RewardModel(judge)
    assert not (tmp_path / "ran").exists()
    assert type(RewardModel(judge, trust_remote_code=True).model).__name__ == "OwnClassifier"
    assert (tmp_path / "ran").exists()


def test_nothing_is_asked_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks about code of a part of a model; while a folder is loaded it refuses such code instead."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    arguments: Any = (None, "part", False, True)  # has_local_code, has_remote_code
    with never_asking(), pytest.raises(ValueError, match="trust_remote_code"):
        resolve_trust_remote_code(*arguments)
    assert not asked
    with pytest.raises(ValueError):
        resolve_trust_remote_code(*arguments)
    assert len(asked) == 1


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the hub id `somebody/model`, in the cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = tmp_path / "hub" / "models--somebody--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("commit")
    (folder / "own.py").unlink()
    return Path(shutil.copytree(folder, model / "snapshots" / "commit"))


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("config.json", {"quantization_config": {"quant_method": "awq"}}, "import a quantization library"),
        ("config.json", {"attn_implementation": "somebody/kernel"}, "download and run a kernel"),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}, "call another class"),
        ("generation_config.json", {"fusion_config": {"a": 1}}, "replace the code of layers"),
        ("adapter_config.json", {"base_model_name_or_path": "somebody/else"}, "holds an adapter"),
        ("model.safetensors.index.json", {"weight_map": {"a": "../a.bin"}}, "must name safetensors files"),
    ],
)
def test_a_hub_id_is_checked_as_a_folder_is(file: str, settings: dict[str, Any], message: str, hub: Path) -> None:
    """Before transformers reads it; control: without the setting it is loaded."""
    load_causal_lm("somebody/model")
    load_tokenizer("somebody/model")
    path = hub / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | settings))
    for load in (load_causal_lm, load_tokenizer):
        with pytest.raises(ValueError, match=message):
            load("somebody/model")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", None])
def test_safetensors_that_a_folder_names_are_read(name: str | None, folder: Path) -> None:
    """The control of the refusal of pickles."""
    change(folder / "config.json", transformers_weights=name)
    check_folder(folder)
