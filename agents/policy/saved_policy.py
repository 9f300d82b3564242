"""What a policy's folder holds, and how it is loaded.

config.json, model.safetensors, generation_config.json    a Hugging Face checkpoint
policy.json                                               format_version and the policy's settings
value_head.safetensors                                    the value head, and a separate critic; of one that is an
                                                          adapter, the merged critic and the adapter
adapter/                                                  the adapter, if the policy is one; it is merged into the model
manifest.json                                             checksums, see `agents.files.write_folder`
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from agents.files import DamagedFile, JsonObject, check_types, read_tensors, write_json, write_tensors
from agents.format_version import FORMAT_VERSION, find_saved, read_saved
from agents.policy.adapter_checks import ADAPTER_CONFIG, check_one_adapter
from agents.policy.adapters import ADAPTER, adapter_probe, load_adapter
from agents.policy.settings import check_separate_critic
from textenv.lm import base_model, load_causal_lm, merge_adapters

Policy = TypeVar("Policy", bound=nn.Module)  # `TransformerPolicy`, which imports this file
SETTINGS = "policy.json"
CRITIC = "value_head.safetensors"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TYPES: dict[str, Any] = {
    "vocab_size": int | None,
    "temperature": float,
    "separate_critic": bool,
    "dtype": str,
    "adapter": bool,
    "adapter_probe": list | None,
}
# of formats without them
DEFAULTS: JsonObject = {"vocab_size": None, "temperature": 1.0, "separate_critic": False, "dtype": "float32"}
# files from which transformers would load other weights than the saved ones
STALE = ("model*.safetensors*", "pytorch_model*.bin*", "adapter_config.json", "adapter_model.*")


def write_policy(policy: Any, folder: Path) -> None:
    """Writes a `TransformerPolicy` to an empty folder."""
    if policy.has_adapter:
        check_one_adapter(policy.model)
        # without the embeddings below it, which are the reference's
        policy.model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)
        merge_adapters(copy.deepcopy(policy.model)).save_pretrained(folder)
    else:
        policy.model.save_pretrained(folder)
    generation_config(policy).save_pretrained(folder)
    write_tensors(folder / CRITIC, _critic_tensors(policy))
    settings = {
        "format_version": FORMAT_VERSION,
        "vocab_size": policy.vocab_size,
        "temperature": policy.temperature,
        "separate_critic": policy.critic is not None,
        "dtype": "bfloat16" if policy.model.dtype == torch.bfloat16 else "float32",
        "adapter": policy.has_adapter,
        "adapter_probe": adapter_probe(policy.model) if policy.has_adapter else None,
    }
    write_json(folder / SETTINGS, settings)


def _critic_tensors(policy: Any) -> dict[str, torch.Tensor]:
    """The value head and a separate critic, by name in the policy.

    The critic of an adapter is saved merged, for a policy that is loaded merged, and its adapter beside it. The weights
    below that adapter are the reference's.
    """
    critic = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("model.")}
    if policy.critic is None or not policy.has_adapter:
        return critic
    whole = copy.deepcopy(policy.model)
    below = base_model(whole)
    setattr(below, below.base_model_prefix, copy.deepcopy(policy.critic))
    merged = merge_adapters(whole).base_model.state_dict()
    return {name: critic[name] for name in _trained_names(policy)} | {f"critic.{n}": t for n, t in merged.items()}


def _trained_names(policy: Any) -> set[str]:
    """The names of value head and separate critic without what is not trained: the weights below an adapter."""
    return {name for name, p in policy.named_parameters() if p.requires_grad and not name.startswith("model.")}


def generation_config(policy: Any) -> Any:
    """The saved settings of `generate`: the temperature, and logits beyond `vocab_size` suppressed."""
    config = copy.deepcopy(policy.model.generation_config)
    if policy.temperature != 1.0:
        config.do_sample, config.temperature = True, policy.temperature
    if padding := list(range(policy.vocab_size, policy.model.config.get_text_config().vocab_size)):
        config.suppress_tokens = padding
    return config


def read_policy(
    kind: type[Policy],
    path: str | PathLike[str],
    vocab_size: int | None,
    temperature: float | None,
    separate_critic: bool | None,
    reference: Any,
    dtype: torch.dtype | None,
    trust_remote_code: bool,
) -> Policy:
    """Loads a policy of class `kind`; arguments as of `TransformerPolicy.from_pretrained`.

    Raises:
        DamagedFile: a file of the folder is missing, changed, or holds something else than a policy's.
        ValueError: a later format, not a causal language model, or an argument breaks the rule that the message names.
    """
    if separate_critic is not None:
        check_separate_critic(separate_critic)
    _check_reference(reference)
    _check_dtype(dtype)
    folder = find_saved(Path(path), SETTINGS, oldest=1)
    if folder is None:  # any Hugging Face causal language model, or a LoRA adapter on one that the caller gives
        saved: JsonObject = DEFAULTS | {"adapter": False}
        if reference is not None and (Path(path) / ADAPTER_CONFIG).is_file():
            model = load_adapter(reference, Path(path))
        else:
            model = load_causal_lm(path, trust_remote_code=trust_remote_code)
    else:
        saved = read_settings(folder)
        with _damage_named(folder):
            model = _load_model(folder, saved, reference, trust_remote_code)
    policy: Any = kind(
        model,
        vocab_size=saved["vocab_size"] if vocab_size is None else vocab_size,
        temperature=saved["temperature"] if temperature is None else temperature,
        separate_critic=saved["separate_critic"] if separate_critic is None else separate_critic,
    )
    if folder is not None:
        with _damage_named(folder):
            _load_critic(policy, folder, saved["separate_critic"])
    policy.cast(DTYPES[saved["dtype"]] if dtype is None else dtype)
    loaded: Policy = policy
    return loaded


def _check_reference(reference: Any) -> None:
    if reference is None or (callable(getattr(reference, "log_probs", None)) and not isinstance(reference, type)):
        return
    raise ValueError(
        f"reference must be an environment's reference, get_mdp(env).reference, or None, got {reference!r:.100}."
    )


def _check_dtype(dtype: object) -> None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        return
    raise ValueError(
        f"dtype must be a torch.dtype of floating-point numbers, such as torch.bfloat16, got {dtype!r:.100}."
    )


def _load_model(folder: Path, saved: JsonObject, reference: Any, trust_remote_code: bool) -> Any:
    if saved["adapter"] and reference is not None:
        return load_adapter(reference, folder / ADAPTER, saved)
    return load_causal_lm(folder, trust_remote_code=trust_remote_code)


def _load_critic(policy: Any, folder: Path, separate: bool) -> None:
    """Loads the value head; a separate critic too, unless it is new."""
    path = folder / CRITIC
    state = read_tensors(path)
    names = {name for name in policy.state_dict() if not name.startswith("model.")}
    needed = _trained_names(policy) if policy.has_adapter else names
    if missing := sorted(name for name in needed - set(state) if separate or not name.startswith("critic.")):
        raise DamagedFile(f"{path} must hold {missing[0]}.")
    policy.load_state_dict({name: state[name] for name in names & set(state)}, strict=False)


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Turns errors of transformers, peft and torch, which files that we did not write can cause, into a DamagedFile."""
    try:
        yield
    except (ImportError, MemoryError, ValueError):  # ours say what is wrong
        raise
    except Exception as error:
        raise DamagedFile(f"{str(folder)!r} does not hold a policy: {error}") from error


def read_settings(folder: Path) -> JsonObject:
    """Returns the content of `policy.json`, with the defaults of what earlier formats do not have."""
    path = folder / SETTINGS
    saved = read_saved(path, oldest=1)
    if saved.get("format_version", 1) < 3:
        saved = DEFAULTS | {"adapter": (folder / ADAPTER).is_dir()} | saved
    saved = {"adapter_probe": None} | saved
    check_types(path, saved, TYPES)
    if saved["dtype"] not in DTYPES:
        raise DamagedFile(f"{path}: dtype must be one of {', '.join(DTYPES)}, got {saved['dtype']!r:.100}.")
    return saved
