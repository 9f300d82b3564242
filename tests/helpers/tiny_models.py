"""A tiny random model of any class of transformers: the default config with every size made small."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

VOCABULARY = 40
LARGEST = 3_000_000  # parameters
WINDOW = 6  # tokens that a window of attention holds

# What a size is called, in one family or another. Where a class needs several to agree, `VARIANTS` are tried.
SIZES = {
    32: "hidden_size d_model n_embd dim embed_dim emb_dim word_embed_proj_dim embedding_size hidden_dim model_dim",
    64: "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_ff moe_intermediate_size ffn_hidden_size "
    "shared_expert_intermediate_size decoder_ffn_size max_position_embeddings n_positions n_ctx max_seq_len seq_length "
    "max_target_positions max_source_positions max_sequence_length image_size",
    8: "kv_channels d_kv attention_head_dim kv_lora_rank q_lora_rank v_head_dim mamba_n_heads mamba_d_head",
    4: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_heads num_experts n_routed_experts num_local_experts "
    "moe_num_experts qk_rope_head_dim qk_nope_head_dim rotary_dim index_n_heads index_head_dim",
    2: "num_experts_per_tok moe_topk moe_k top_k first_k_dense_replace n_group topk_group",
    WINDOW: "sliding_window window_size attention_window attention_chunk_size local_window_size attention_window_size",
}
LAYERS = "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_decoder_layers"
VARIANTS = {
    LAYERS: (2, 4, 8),
    "num_key_value_heads n_kv_heads num_kv_heads multi_query_group_num": (2, 4),
    "head_dim": (8, 16, 4),
}
FURTHER: dict[str, dict[str, Any]] = {  # what these classes want besides
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "BambaConfig": {"attn_layer_indices": [0]},
    "FalconH1Config": {"mamba_d_ssm": 64, "mamba_n_groups": 1},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"]},
    "Lfm2MoeConfig": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "Mamba2Config": {"num_heads": 8, "n_groups": 1},
    "RoCBertConfig": {"pronunciation_vocab_size": 40, "shape_vocab_size": 40},
    "XmodConfig": {"default_language": "en_XX"},
    "ZayaConfig": {"num_experts_per_tok": 1},
}
SPECIAL = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 0}


def causal_lm_configs() -> dict[str, Any]:
    """The config classes of all causal language models, by name."""
    return {config.__name__: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}


def tiny_causal_lm(config_class: Any, auto: Any = AutoModelForCausalLM) -> Any:
    """Makes a tiny model, far from uniform, and checks that it reads a sequence.

    Raises:
        Exception: that of the first variant, where none works.
    """
    first: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sizes in variants():
            try:
                return _make(config_class, auto, sizes)
            except Exception as error:  # each class has errors of its own
                first = first or error
    assert first is not None
    raise first


def variants() -> Iterator[dict[str, int]]:
    """Small sizes of all names."""
    fixed = {name: size for size, names in SIZES.items() for name in names.split()}
    for choice in itertools.product(*VARIANTS.values()):
        yield fixed | {name: size for names, size in zip(VARIANTS, choice, strict=True) for name in names.split()}


def _make(config_class: Any, auto: Any, sizes: dict[str, int]) -> Any:
    config = config_class(**_settings(config_class, sizes))
    with torch.device("meta"):
        number = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if number > LARGEST:
        raise ValueError(f"{number} parameters are not tiny.")
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.2)
        model(input_ids=torch.tensor([[5, 6, 7, 8]]))
    return model


def _settings(config_class: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """The arguments of a config that are not its defaults; those of its parts too."""
    fields = config_class().to_dict()
    known = set(fields) | set(inspect.signature(config_class.__init__).parameters)
    settings: dict[str, Any] = {name: size for name, size in sizes.items() if name in known}
    settings = {name: size for name, size in settings.items() if not isinstance(fields.get(name), list | dict)}
    kinds = list(dict.fromkeys(fields.get("layer_types") or ()))
    if kinds:  # one layer of each kind at least
        number = max(sizes["num_hidden_layers"], len(kinds))
        settings["layer_types"] = (kinds * number)[:number]
        settings |= {name: number for name in LAYERS.split() if name in known}
    for name, part in config_class.sub_configs.items():
        if isinstance(fields.get(name), dict) and hasattr(part, "sub_configs"):
            settings[name] = _settings(part, sizes)
    if "vocab_size" in fields:
        settings |= {"vocab_size": VOCABULARY} | SPECIAL
    if "is_decoder" in known:
        settings["is_decoder"] = True
    return settings | FURTHER.get(config_class.__name__, {})
