"""Adapters (LoRA) on the weights of the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textenv.references import CausalLMReference


def load_adapter(reference: Any, adapter: Any) -> Any:
    """A `PeftModel` on the reference's own weights: a new one of a `LoraConfig`, or the one saved in a folder."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("An adapter needs peft: pip install textenv[peft]") from error
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


ADAPTER = "adapter"  # the folder of it in a checkpoint
