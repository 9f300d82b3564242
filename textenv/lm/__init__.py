"""Causal language models: loading, one parallel forward pass, KV-cached decoding, prefix sharing. Needs torch."""

from textenv.lm.cached_decoder import ROOM, KVReader
from textenv.lm.forward import MAX_LOGITS, forward_answers, fuse_activations
from textenv.lm.inputs import bare, cache_argument, last_columns, pack_left, position_ids
from textenv.lm.loading import check_causal, check_vocabulary, load_causal_lm
from textenv.lm.prefix_sharing import read_texts

__all__ = [
    "MAX_LOGITS",
    "ROOM",
    "KVReader",
    "bare",
    "cache_argument",
    "check_causal",
    "check_vocabulary",
    "forward_answers",
    "fuse_activations",
    "last_columns",
    "load_causal_lm",
    "pack_left",
    "position_ids",
    "read_texts",
]
