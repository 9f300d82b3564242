"""Causal language models: loading, one parallel forward pass, KV-cached decoding, prefix sharing. Needs torch."""

from textenv.lm.cached_decoder import BLOCK_COLUMNS, CachedDecoder
from textenv.lm.forward import MAX_LOGITS, forward_completions, fuse_activations
from textenv.lm.inputs import base_model, cache_argument, pack_left, position_ids
from textenv.lm.loading import check_causal, check_vocabulary, load_causal_lm
from textenv.lm.prefix_sharing import forward_sequences
from textenv.lm.smollm2 import load_smollm2

__all__ = [
    "BLOCK_COLUMNS",
    "MAX_LOGITS",
    "CachedDecoder",
    "base_model",
    "cache_argument",
    "check_causal",
    "check_vocabulary",
    "forward_completions",
    "forward_sequences",
    "fuse_activations",
    "load_causal_lm",
    "load_smollm2",
    "pack_left",
    "position_ids",
]
