"""Adapters of peft in a causal language model: found in its modules, and merged into the weights of a copy."""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from textenv.lm.inputs import max_length
from textenv.lm.protocols import CausalLM
from textenv.lm.right_padded import forward_alone
from textenv.lm.rounding import rounding_tolerance

TOKENS = 16  # of the sequence whose logits are compared


def has_adapters(model: CausalLM) -> bool:
    """Whether a model is a `PeftModel`, or has layers of peft inside."""
    if not isinstance(model, nn.Module) or "peft" not in sys.modules:  # without peft there are no such layers
        return False
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)
    return any(isinstance(module, kinds) for module in model.modules())


def frozen_copy(model: CausalLM) -> Any:
    """Returns a copy of a causal LM; the adapters of a `PeftModel` are merged into the weights of the copy.

    Raises:
        ValueError: the adapters cannot be merged, or the merged weights compute something else.
    """
    return merge_and_check_adapters(copy_with_adapters(model).eval()) if has_adapters(model) else copy.deepcopy(model)


def copy_with_adapters(model: CausalLM) -> Any:
    """Returns a copy of a model with adapters.

    Raises:
        ValueError: some of its parameters are views of others.
    """
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:  # a view has a gradient function, so it cannot be copied
        raise ValueError(
            "The adapter has parameters that are views of others, which can be neither copied nor trained: leave "
            "ensure_weight_tying out."
        ) from error


def merge_and_check_adapters(model: Any) -> Any:
    """Merges the adapters of a `PeftModel` as `merge_adapters` does, and checks the result.

    Raises:
        ValueError: see `merge_adapters`; or an adapter is disabled, or the merged weights compute something else.
    """
    _check_wrapped(model)
    # models of transformers have a method of this name
    if any(getattr(module, "disable_adapters", None) is True for module in model.modules()):
        raise ValueError(
            "The adapter is disabled, and the merged model computes something else: call "
            "model.base_model.enable_adapter_layers() first, or pass the model without its adapter, model.unload()."
        )
    expected = probe_logits(model)
    merged = merge_adapters(model)
    if not _are_close(found := probe_logits(merged), expected, merged.dtype):
        raise ValueError(
            "The adapter cannot be merged: the merged model computes something else (its logits differ by "
            f"{float((found - expected).abs().max()):.2g})."
        )
    return merged


@torch.no_grad()
def merge_adapters(model: Any) -> Any:
    """Merges the adapters of a `PeftModel` into its weights, in place, and returns the model below, a plain one.

    peft merges the adapter of one of two tied layers into the weights of both. So weights are untied first. Embeddings
    that are still equal are tied again; others stay two matrices, which `save_pretrained` and loading keep apart.

    Raises:
        ValueError: it is not a `PeftModel`, or its adapters cannot be merged.
    """
    _check_wrapped(model)
    base = model.get_base_model()
    configs = [base.config, base.config.get_text_config()]
    flags = [getattr(config, "tie_word_embeddings", None) for config in configs]
    was_tied = _is_tied(base)
    _untie(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied weights
            merged = model.merge_and_unload()
    except Exception as error:  # each kind of adapter has errors of its own
        raise ValueError(f"The adapter cannot be merged into the weights below it: {error}") from error
    if was_tied:
        first, second = merged.get_input_embeddings(), merged.get_output_embeddings()
        equal = torch.equal(first.weight, second.weight)
        if equal:
            second.weight = first.weight
        for config, flag in zip(configs, flags, strict=True):
            if flag is not None:
                config.tie_word_embeddings = flag and equal
    return merged


def remove_adapters(model: Any) -> Any:
    """Removes the adapters of a `PeftModel`, in place, and returns the model below as it was before it had any.

    peft would leave whole modules that were trained (`modules_to_save`) in the place of the original ones.
    """
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
                setattr(parent, name, module.original_module)
    return model.unload()


@torch.no_grad()
def probe_logits(model: CausalLM) -> Tensor:
    """Returns the logits of one sequence, float64: [L, V], apart from a constant, which the softmax takes away.

    A classifier's are [labels], as they are.
    """
    config = model.config.get_text_config()
    ids = torch.randint(
        config.vocab_size, (1, min(TOKENS, max_length(model) or TOKENS)), generator=torch.Generator().manual_seed(0)
    )
    logits: Tensor = forward_alone(model, ids.to(model.device)).logits[0].cpu().double()
    return logits - logits.mean(dim=-1, keepdim=True) if logits.ndim == 2 else logits


def _check_wrapped(model: Any) -> None:
    if not hasattr(model, "get_base_model"):
        raise ValueError(
            f"The {type(model).__name__} has an adapter's layers inside; pass the peft.PeftModel around it, or merge "
            "them into its weights."
        )
    if not hasattr(model, "merge_and_unload"):
        raise ValueError("The adapter adds tokens of its own, or is of another kind that cannot be merged.")
    if not model.peft_config:
        raise ValueError(
            f"The {type(model).__name__} has no adapter, as after delete_adapter(): pass the model below it, "
            "model.unload()."
        )


def _is_tied(base: Any) -> bool:
    """Whether input and output embeddings share a matrix, below an adapter or not."""
    layers = (base.get_input_embeddings(), base.get_output_embeddings())
    first, second = ({id(each) for each in layer.parameters()} if layer is not None else set() for layer in layers)
    return not first.isdisjoint(second)


def _untie(model: nn.Module) -> None:
    """Gives each module parameters of its own."""
    known: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in known and parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            known.add(id(parameter))


def _are_close(logits: Tensor, others: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of `probe_logits` are equal but for rounding in `dtype`, in proportion to their size."""
    spread = float(max(others.max() - others.min(), others.abs().max()))  # a classifier with one label has one logit
    return bool((logits - others).abs().max() <= rounding_tolerance(others, dtype, spread))
