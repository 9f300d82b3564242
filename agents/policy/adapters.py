"""Adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) on the reference's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textenv.references import CausalLMReference

ADAPTER = "adapter"  # the folder of the adapter in a checkpoint


def load_adapter(reference: Any, adapter: Any) -> Any:
    """Returns a `PeftModel` on the reference's own weights.

    Args:
        reference: a `CausalLMReference`; from now on it computes its log-probabilities with the adapter off.
        adapter: a `LoraConfig` for a new adapter, or the folder (a `Path`) of a saved one.

    Raises:
        ImportError: peft is not installed.
        ValueError: another kind of reference, one that carries an adapter already, or an adapter that adds tokens.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("An adapter needs peft: pip install -e '.[peft]'") from error
    if not isinstance(reference, CausalLMReference):
        raise ValueError(f"An adapter needs a causal language model as reference, got {type(reference).__name__}.")
    reference.check_no_adapter()
    if getattr(adapter, "is_prompt_learning", False):
        raise ValueError(f"An adapter must not add tokens of its own, as {type(adapter).__name__} does; LoRA does not.")
    if isinstance(adapter, Path):
        model = peft.PeftModel.from_pretrained(reference.model, adapter, is_trainable=True)
    else:
        model = peft.get_peft_model(reference.model, adapter)
    reference.attach(model)
    return model
