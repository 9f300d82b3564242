"""Causal language models: loading, one parallel forward pass, KV-cached decoding, prefix sharing. Needs torch."""

from textenv.lm.adapters import (
    copy_with_adapters,
    frozen_copy,
    has_adapters,
    merge_adapters,
    merge_and_check_adapters,
    probe_logits,
    remove_adapters,
)
from textenv.lm.cache_support import assume_cache_support, find_cache_support, supports_cache
from textenv.lm.cached_decoder import BLOCK_COLUMNS, CachedDecoder
from textenv.lm.devices import is_accelerator, to_device
from textenv.lm.forward import MAX_LOGITS, forward_completions, fuse_activations
from textenv.lm.inputs import base_model, cache_argument, is_causal_lm, max_length, pack_left, position_ids, trunk_of
from textenv.lm.loading import check_vocabulary, load_causal_lm, load_pretrained, load_tokenizer
from textenv.lm.position_tables import PositionTables
from textenv.lm.prefix_sharing import SharePrefix, forward_sequences
from textenv.lm.protocols import CausalLM
from textenv.lm.random_state import forked_random_state, get_random_state, set_random_state
from textenv.lm.rounding import rounding_tolerance
from textenv.lm.smollm2 import load_smollm2
from textenv.lm.uncached_decoder import UncachedDecoder, new_decoder

__all__ = [
    "BLOCK_COLUMNS",
    "MAX_LOGITS",
    "CachedDecoder",
    "CausalLM",
    "PositionTables",
    "SharePrefix",
    "UncachedDecoder",
    "assume_cache_support",
    "base_model",
    "cache_argument",
    "check_vocabulary",
    "copy_with_adapters",
    "find_cache_support",
    "forked_random_state",
    "forward_completions",
    "forward_sequences",
    "frozen_copy",
    "fuse_activations",
    "get_random_state",
    "has_adapters",
    "is_accelerator",
    "is_causal_lm",
    "load_causal_lm",
    "load_pretrained",
    "load_smollm2",
    "load_tokenizer",
    "max_length",
    "merge_adapters",
    "merge_and_check_adapters",
    "new_decoder",
    "pack_left",
    "position_ids",
    "probe_logits",
    "remove_adapters",
    "rounding_tolerance",
    "set_random_state",
    "supports_cache",
    "to_device",
    "trunk_of",
]
