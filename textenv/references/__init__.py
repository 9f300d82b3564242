"""References: pi_ref as a finite-state table or a causal language model."""

from typing import TYPE_CHECKING

from textenv.references.checks import as_reference, first_tokens, resolve_eos
from textenv.references.protocol import Reference
from textenv.references.tables import TableReference
from textenv.references.tokenizers import as_tokenizer

if TYPE_CHECKING:
    from textenv.references.causal_lm import CausalLMReference

__all__ = [
    "CausalLMReference",
    "Reference",
    "TableReference",
    "as_reference",
    "as_tokenizer",
    "first_tokens",
    "resolve_eos",
]


def __getattr__(name: str) -> object:
    """Imports `CausalLMReference` on first use: it needs torch, which the rest of this package does not."""
    if name == "CausalLMReference":
        from textenv.references.causal_lm import CausalLMReference

        return CausalLMReference
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
