"""Loads causal language models and tokenizers, and checks that they fit each other."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from textenv.lm.trust import check_folder, never_asking


def load_pretrained(kind: Any, path: str | PathLike[str], *, trust_remote_code: bool = False, **arguments: Any) -> Any:
    """Returns `kind.from_pretrained(path)` of transformers: no code of the folder is run, and no pickle is read.

    Args:
        kind: `AutoTokenizer`, `AutoConfig`, `AutoModelForCausalLM`, ...
        path: a folder or a hub id.
        trust_remote_code: whether the folder or hub id may run code of its own.
        arguments: further arguments of `from_pretrained`.

    Raises:
        ValueError: there is nothing to load; it needs code of its own; or its weights are pickles (see
            `textenv.lm.trust`).
    """
    check_folder(path, trust_remote_code)
    if kind not in (AutoConfig, AutoTokenizer):
        arguments["use_safetensors"] = True
    try:
        with never_asking():
            return kind.from_pretrained(path, trust_remote_code=trust_remote_code, **arguments)
    except ImportError:
        raise
    except OSError as error:
        raise ValueError(f"There is nothing to load at {str(path)!r}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # damaged files raise KeyError, AttributeError, SafetensorError, ...
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"{str(path)!r} brings Python code, which is run only with trust_remote_code=True "
                "(--trust-remote-code)."
            ) from error
        if "ignore_mismatched_sizes" in str(error):
            raise ValueError(f"{str(path)!r}: the shapes of its weights are not those of its config.json.") from error
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{str(path)!r} cannot be loaded ({type(error).__name__}): {error}") from error


def load_tokenizer(path: str | PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """Loads the tokenizer of a folder or hub id, see `load_pretrained`."""
    return load_pretrained(AutoTokenizer, path, trust_remote_code=trust_remote_code)


def load_causal_lm(path: str | PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """Loads the causal language model of a folder or hub id, in float32, see `load_pretrained`.

    Raises:
        ValueError: it is another kind of model, or lacks weights, which transformers would draw at random; or see
            `load_pretrained`.
    """
    config = load_pretrained(AutoConfig, path, trust_remote_code=trust_remote_code)
    own_code = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ValueError(
            f"{str(path)!r} is not a causal language model (one that predicts the next token), but a "
            f"{config.model_type}."
        )
    model, loaded = load_pretrained(
        AutoModelForCausalLM,
        path,
        trust_remote_code=trust_remote_code,
        dtype=torch.float32,
        output_loading_info=True,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{str(path)!r} is not a complete causal language model: {missing[0]} is missing.")
    return model


def check_vocabulary(tokens: int, size: int, name: str) -> None:
    """Raises a ValueError unless a model's vocabulary is its tokenizer's, or larger by some padding."""
    if not 0 <= size - tokens <= max(128, tokens // 20):
        raise ValueError(
            f"The {name} has a vocabulary of {size} tokens, the tokenizer one of {tokens}; they must be the same, "
            "token for token, apart from some padding of the model's."
        )
