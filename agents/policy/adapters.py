"""Adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on the reference's own weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from agents.files import JsonObject
from agents.policy.adapter_checks import CHECKED, check_adapter_config, check_adapter_files, check_trial
from agents.ranges import check_integer
from textenv.lm import CausalLM, forked_random_state, probe_logits
from textenv.references import CausalLMReference

ADAPTER = "adapter"  # the folder of the adapter in a checkpoint
# How far rounding, on other devices and in TensorFloat-32 too, may bring logits apart on average, over their range
TOLERANCE, HALF_TOLERANCE = 0.002, 0.02


def new_adapter(reference: Any, config: Any, seed: int) -> Any:
    """Returns a `PeftModel` with a new adapter on the reference's own weights.

    All is tried on a copy of the reference first: one whose adapter is refused is as it was.

    Args:
        reference: a `CausalLMReference`; from now on it computes its log-probabilities with the adapter off.
        config: a `peft.LoraConfig`.
        seed: of its weights.

    Raises:
        ImportError: peft is not installed.
        ValueError: another kind of reference, one that carries an adapter already, an adapter other than LoRA, or one
            that would make peft import a module or unpickle a file, that changes or trains the reference's weights, or
            that cannot be merged into them.
    """
    peft = _import_peft()
    _check_reference(reference)
    check_adapter_config(config)
    check_integer("The rank r of an adapter", config.r, 1, reference.model.config.get_text_config().hidden_size)

    def add(model: CausalLM) -> Any:
        return peft.get_peft_model(model, copy.deepcopy(config))  # peft changes the config that it is given

    with forked_random_state(reference.model.device, seed):  # peft draws from the global generator
        return _attach(reference, add, _on_a_copy(reference, add, "The adapter"))


def load_adapter(reference: Any, folder: Path, saved: JsonObject | None = None) -> Any:
    """Returns a `PeftModel` with the adapter of a folder on the reference's own weights; it can be trained further.

    All is tried on a copy of the reference first: one whose adapter is refused is as it was.

    Args:
        reference: see `new_adapter`.
        folder: the folder of peft's files.
        saved: the settings that were saved with the adapter: dtype, and `adapter_probe` where it is known.

    Raises:
        ImportError: peft is not installed.
        ValueError: see `new_adapter`; or a file is missing, or the adapter belongs to other weights.
    """
    peft = _import_peft()
    _check_reference(reference)
    check_adapter_files(folder)

    def load(model: CausalLM) -> Any:
        return peft.PeftModel.from_pretrained(model, folder, is_trainable=True)

    name = f"The adapter in {str(folder)!r}"
    trial = _on_a_copy(reference, load, name)
    if saved is not None and not _computes_the_same(trial, saved):
        raise ValueError(
            f"{name} was trained on other weights than the reference's: load it with the reference that it was trained "
            "with, or without one, merged."
        )
    return _attach(reference, load, trial)


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("An adapter needs peft: pip install -e '.[peft]'") from error
    return peft


def _check_reference(reference: Any) -> None:
    if not isinstance(reference, CausalLMReference):
        raise ValueError(f"An adapter needs a causal language model as reference, got {type(reference).__name__}.")
    reference.check_no_adapter()


def _on_a_copy(reference: CausalLMReference, wrap: Callable[[Any], Any], name: str) -> Any:
    """The adapter on a copy of the reference's model; a ValueError about `name` where it does not fit."""
    with forked_random_state(reference.model.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those that are worth reading come again
        warnings.filterwarnings("error", "Found missing adapter keys")  # peft would leave them as they are when new
        try:
            trial = wrap(copy.deepcopy(reference.model)).eval()
            probe_logits(trial)
        except Exception as error:  # peft and torch raise errors of many kinds
            raise ValueError(f"{name} does not fit the reference's model: {str(error).strip()}") from error
    return trial


def _attach(reference: CausalLMReference, wrap: Callable[[Any], Any], trial: object) -> Any:
    """Adds the adapter to the reference's own weights, once its trial on a copy has passed every check."""
    check_trial(trial, below=probe_logits(reference.model))
    model = wrap(reference.model)
    setattr(model, CHECKED, True)
    reference.attach(model)
    return model


def adapter_probe(model: CausalLM) -> list[float]:
    """A few numbers that are saved with an adapter, and show on which weights it was trained.

    Returns:
        The largest logit at each of the L positions of `probe_logits`, then the logit of token 0 at each.
    """
    logits = probe_logits(model)
    return [float(number) for number in torch.cat([logits.amax(dim=-1), logits[:, 0]])]


def _computes_the_same(model: CausalLM, saved: Mapping[str, object]) -> bool:
    """Whether a model computes what the policy with these saved settings did; True where those do not say."""
    if saved.get("adapter_probe") is None:
        return True
    found, expected = torch.tensor(adapter_probe(model)), torch.tensor(saved["adapter_probe"])
    if found.shape != expected.shape:
        return False
    half = torch.finfo(model.dtype).bits == 16 or saved["dtype"] != "float32"
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    return bool((found - expected).abs().mean() <= tolerance * (expected.max() - expected.min()))
