"""What an adapter must be so that it can be trained, saved, merged and loaded, tried on a copy of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from textenv.data import parse_json
from textenv.lm import CausalLM, copy_with_adapters, has_adapters, merge_and_check_adapters, probe_logits

ADAPTER_CONFIG = "adapter_config.json"
NAME = "default"  # of the adapter in its `PeftModel`, which is also in the names of saved tensors
CHECKED = "adapter_is_checked"  # attribute of a `PeftModel` of which `check_adapter` has tried a copy
NOT_READ = {  # settings of an adapter -> what peft does with them
    "megatron_config": "imports the module that megatron_core names",
    "corda_config": "unpickles the files that it names",
    "lora_ga_config": "unpickles the file that it names",
}


def check_adapter(model: CausalLM) -> None:
    """Checks that a model without adapters, or a `PeftModel`, can be a policy's: trained, saved and loaded.

    Raises:
        ValueError: it has layers of adapters, but is not a `PeftModel` with one LoRA adapter that is active, can be
            trained, leaves the weights below it as they are, and can be merged into them.
    """
    if has_adapters(model):
        check_one_adapter(model)
        if not hasattr(model, CHECKED):
            check_trial(copy_with_adapters(model).eval())
            setattr(model, CHECKED, True)


def check_one_adapter(model: Any) -> None:
    """Raises a ValueError unless a model with adapters is a `PeftModel` with one LoRA adapter that is active."""
    configs = getattr(model, "peft_config", {})
    if not hasattr(model, "get_base_model"):
        raise ValueError(
            f"The {type(model).__name__} has an adapter's layers inside: pass the peft.PeftModel around it, or merge "
            "them into its weights."
        )
    if not configs:
        raise ValueError(
            f"A policy must have one adapter, but the {type(model).__name__} has none, as after delete_adapter(): to "
            "train all weights, pass the model below it, model.unload()."
        )
    if list(configs) != [NAME] or model.active_adapters != [NAME]:
        raise ValueError(
            f"A policy must have one adapter, active and named {NAME!r} as peft names it, got {', '.join(configs)} "
            f"(active: {', '.join(model.active_adapters)})."
        )
    check_adapter_config(configs[NAME])
    if any(getattr(module, "disable_adapters", None) is True for module in model.modules()):
        raise ValueError(
            "A policy's adapter must not be disabled while it is trained: call "
            "model.base_model.enable_adapter_layers() first."
        )
    if any(getattr(module, "merged", False) for module in model.modules()):
        raise ValueError("A policy's adapter must not be merged while it is trained: call unmerge_adapter() first.")


@torch.no_grad()
def check_trial(trial: Any, below: Tensor | None = None) -> None:
    """Checks a `PeftModel` that may be changed as `check_adapter` does, when it is new and after some training.

    `below` is what `probe_logits` must return with the adapter off.
    """
    check_one_adapter(trial)
    trained = [parameter for parameter in trial.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            "An adapter must have parameters to train, got none: leave inference_mode out, or load it with "
            "peft.PeftModel.from_pretrained(..., is_trainable=True)."
        )
    if len({parameter.data_ptr() for parameter in trained}) < len(trained):
        raise ValueError(
            "An adapter must not have parameters that share their memory, which the optimizer would step twice: leave "
            "ensure_weight_tying out."
        )
    with trial.disable_adapter():
        before = probe_logits(trial)
    if below is not None and not torch.equal(before, below):
        raise ValueError(
            "An adapter must not change the weights below it, which are the reference's, as layer_replication, "
            "init_lora_weights='pissa' and 'olora', and biases or embeddings of another model in its file do."
        )
    generator = torch.Generator().manual_seed(0)
    for parameter in trained:
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(noise, alpha=0.03)  # as of a weight, so that no layer saturates
    with trial.disable_adapter():
        if not torch.equal(probe_logits(trial), before):
            raise ValueError("An adapter must not train the weights below it, as bias='all' and 'lora_only' do.")
    merge_and_check_adapters(trial)


def check_adapter_files(folder: Path) -> None:
    """Checks the files of a saved adapter before peft reads them."""
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ValueError(f"{weights} is missing; weights in another file are a pickle, which is not read.")
    path = folder / ADAPTER_CONFIG
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON object, but cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must be a JSON object, got {config!r:.100}.")
    _check_settings(config)


def _check_settings(config: dict[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":  # also equal to peft's enumeration
        raise ValueError(f"An adapter must be a LoRA adapter, got {kind!r:.100}.")
    for key, effect in NOT_READ.items():
        if config.get(key):
            raise ValueError(f"An adapter must not have {key}, with which peft {effect}.")


def check_adapter_config(config: Any) -> None:
    """Checks a config of peft: its kind, and that it is not one that adds tokens."""
    if getattr(config, "is_prompt_learning", False):
        raise ValueError(f"An adapter must not add tokens of its own, as {type(config).__name__} does; LoRA does not.")
    if not hasattr(config, "to_dict"):
        raise ValueError(f"An adapter must be a peft.LoraConfig, got {config!r:.100}.")
    _check_settings(config.to_dict())
