"""Every sequence classifier of transformers that can be made tiny, and what `RewardModel` makes of it."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from textenv.rewards import RewardModel

VOCABULARY = 40
POSITIONS = 48
LARGEST = 4_000_000  # parameters
SPECIAL = {"eos_token_id": 0, "pad_token_id": 1, "bos_token_id": 2}


def _sizes(number: int, *names: str) -> dict[str, int]:
    return dict.fromkeys(names, number)


SIZES = {
    "vocab_size": VOCABULARY,
    **_sizes(32, "hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "word_embed_proj_dim", "d_embed"),
    **_sizes(32, "embedding_size", "hidden_dim", "model_dim", "true_hidden_size", "q_lora_rank", "kv_lora_rank"),
    **_sizes(2, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
    **_sizes(2, "num_blocks", "num_decoder_layers", "num_encoder_layers", "encoder_num_layers"),
    **_sizes(4, "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads"),
    **_sizes(4, "encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"),
    **_sizes(2, "num_key_value_heads", "n_kv_heads", "num_kv_heads", "multi_query_group_num"),
    **_sizes(8, "head_dim", "kv_channels", "d_kv", "attention_head_dim", "d_head", "v_head_dim", "qk_nope_head_dim"),
    **_sizes(8, "qk_rope_head_dim", "intra_bottleneck_size"),
    **_sizes(64, "intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "d_ff", "d_inner"),
    **_sizes(64, "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_hidden_size", "decoder_ffn_size"),
    **_sizes(POSITIONS, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"),
    **_sizes(POSITIONS, "max_source_positions", "seq_length", "max_sequence_length", "max_encoder_position_embeddings"),
    **_sizes(POSITIONS, "max_decoder_position_embeddings"),
    **_sizes(4, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    **_sizes(2, "num_experts_per_tok", "moe_topk", "moe_k", "top_k"),
    "n_group": 1,
    "topk_group": 1,
    "sliding_window": 6,
    "rotary_dim": 4,
    "num_buckets": 8,
}
# where the fields above are not enough: architectures whose sizes depend on one another
EXACT: dict[str, dict[str, Any]] = {
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]], "window_size": 6},
    "ReformerConfig": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "max_position_embeddings": 64,
        "num_hashes": 1,
    },
    "EsmcConfig": {"num_key_value_heads": 4},
    "LiltConfig": {"hidden_size": 48, "channel_shrink_ratio": 4, "max_2d_position_embeddings": 64},
    "LukeConfig": {"entity_vocab_size": 4, "entity_emb_size": 8},
    "RoCBertConfig": {"pronunciation_vocab_size": 4, "shape_vocab_size": 4},
    "MobileBertConfig": {"intra_bottleneck_size": 32},
    "T5Config": {"decoder_start_token_id": 1},
    "XmodConfig": {"default_language": "en_XX"},
    "LayoutLMv3Config": {"coordinate_size": 6, "shape_size": 4},
    "CohereCompassTextConfig": {"layer_types": ["sliding_attention", "full_attention"]},
    "LongformerConfig": {"attention_window": 8},
    "LEDConfig": {"attention_window": 8},
    "FunnelConfig": {"block_sizes": [1, 1]},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 2},
}


class Found(NamedTuple):
    """What `RewardModel` makes of a class of models.

    Attributes:
        verdict: "right", "right by equal length", "refused", "not made"; "WRONG", or "ACCIDENT".
        reason: the error's text, or the longest sequence that it reads.
    """

    verdict: str
    reason: str


def classifier_configs() -> dict[str, type[PreTrainedConfig]]:
    """The config classes of all sequence classifiers, by name."""
    return {config.__name__: config for config in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING}


def tiny_tokenizer() -> Any:
    """One token per word, w3 to w39; a sequence begins with [BOS] and ends with [EOS]."""
    names = ["[EOS]", "[PAD]", "[BOS]", *(f"w{i}" for i in range(3, VOCABULARY))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w3"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = TemplateProcessing(
        single="[BOS] $0 [EOS]", special_tokens=[("[BOS]", names.index("[BOS]")), ("[EOS]", names.index("[EOS]"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="[EOS]", pad_token="[PAD]", bos_token="[BOS]", cls_token="[BOS]"
    )


def tiny_config(cls: type[PreTrainedConfig], **more: Any) -> Any:
    """A config of few parameters."""
    base = cls()
    fields = base.to_dict()
    known = {*fields, *inspect.signature(cls.__init__).parameters}
    small = {name: size for name, size in SIZES.items() if name in known and _is_number(fields.get(name, size))}
    small |= {
        name: tiny_config(type(inner)).to_dict()
        for name, inner in vars(base).items()
        if isinstance(inner, PreTrainedConfig)
    }
    if "kv_lora_rank" in fields:  # latent attention: as many keys as queries
        small["num_key_value_heads"] = small["num_attention_heads"]
    for name in ("layer_types", "layers_block_type"):
        if isinstance(kinds := fields.get(name), list):
            small[name] = (list(dict.fromkeys(kinds)) * 2)[:2]
    exact = EXACT.get(cls.__name__, {})
    return cls(**{**small, **SPECIAL, **exact, **more})


def tiny_classifier(cls: type[PreTrainedConfig], num_labels: int = 1, **more: Any) -> Any:
    """A classifier whose weights are so large that scores differ.

    Raises:
        Exception: it cannot be made, or has more than `LARGEST` parameters.
    """
    config = tiny_config(cls, num_labels=num_labels, **more)
    with torch.device("meta"):
        count = sum(each.numel() for each in AutoModelForSequenceClassification.from_config(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def examine(cls: type[PreTrainedConfig]) -> Found:
    """Makes a tiny classifier of a class, loads it into `RewardModel` and compares its scores with those alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tiny_classifier(cls)
            model(input_ids=torch.tensor([[2, 3, 4, 5, 0]]))
        except Exception as error:
            return Found("not made", _line(error))
        try:
            reward = RewardModel(model, tiny_tokenizer(), batch_size=8)
        except ValueError as error:
            return Found("refused", _line(error))
        except Exception as error:
            return Found("ACCIDENT", _line(error))
        try:
            off, spread = largest_error(reward)
        except Exception as error:
            return Found("ACCIDENT", _line(error))
    if off > 1e-3 * spread + 1e-5:
        return Found("WRONG", f"off by {off:.2g}, of a spread of {spread:.2g}")
    limit = "no limit" if reward.max_length is None else f"at most {reward.max_length} tokens"
    return Found("right" if reward.pads else "right by equal length", limit)


@torch.no_grad()
def largest_error(reward: RewardModel) -> tuple[float, float]:
    """The largest difference between scores in a mixed batch and those of each sequence alone, and the scores' spread.

    One of the sequences is longer than the model can read.
    """
    rng = np.random.default_rng(1)
    lengths = [1, 2, 3, 3, 5, 8, 8, 13, 21, 34, 2 * POSITIONS]
    texts = [" ".join(f"w{i}" for i in rng.integers(3, VOCABULARY, length)) for length in lengths]
    found = np.array(reward([text[:2] for text in texts], texts))
    rows = [reward.tokens(text[:2], text) for text in texts]
    alone = [reward.model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]
    return float(np.abs(found - alone).max()), float(np.ptp(alone))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:230]
