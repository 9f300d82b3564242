"""A Hugging Face causal language model as reference: KV-cached stepping, or whole completions in one pass."""

from __future__ import annotations

import contextlib
import copy
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from textenv.arguments import check_count
from textenv.lm import (
    MAX_LOGITS,
    CausalLM,
    check_vocabulary,
    find_cache_support,
    forward_completions,
    frozen_copy,
    fuse_activations,
    is_causal_lm,
    load_causal_lm,
    max_length,
    new_decoder,
    remove_adapters,
    supports_cache,
)
from textenv.references.incremental import IncrementalInput
from textenv.state import Array


class CausalLMReference:
    """A frozen causal language model.

    `log_probs` processes each token once while an environment is stepped: a KV cache holds one row per episode.
    `token_log_probs` scores whole completions in one parallel pass.

    Args:
        model: a Hugging Face causal LM, or a path or hub id to load one from. A model is copied, so that training the
            original does not change the reference. The adapters of a `PeftModel` are merged into the copy's weights.
        vocab_size: V, if the tokenizer has fewer tokens than the model has logits (padded vocabularies); the logits
            beyond V are dropped.
        trust_remote_code: whether a path or hub id may run code of its own.

    Raises:
        ValueError: the model has fewer logits than V, or too many more for padding; it is not causal; or it has
            adapters that cannot be merged.
        TypeError: it is not a causal LM.
    """

    full_support = True

    def __init__(
        self, model: CausalLM | str | PathLike[str], *, vocab_size: int | None = None, trust_remote_code: bool = False
    ) -> None:
        if isinstance(model, str | PathLike):
            own: Any = load_causal_lm(model, trust_remote_code=trust_remote_code)
        elif is_causal_lm(model):
            own = frozen_copy(model)
        else:
            raise TypeError(
                "A reference must be None, have log_probs(input_ids, attention_mask), or be a causal language model "
                f"or a path to one, got {_described(model)}."
            )
        self.model = fuse_activations(own).eval().requires_grad_(False)
        find_cache_support(self.model)
        self.adapter: Any = None
        self.config = own.config.get_text_config()
        self.vocab_size = check_count("vocab_size", self.config.vocab_size if vocab_size is None else vocab_size)
        check_vocabulary(self.vocab_size, self.config.vocab_size, "reference")
        generation = getattr(own, "generation_config", None)
        eos_token_id = getattr(generation, "eos_token_id", None)
        self.eos_token_id = self.config.eos_token_id if eos_token_id is None else eos_token_id
        self.max_length = max_length(self.model)
        self._input, self._logits = IncrementalInput(), torch.zeros(0, 0)
        self._decoder: Any = None  # made where all rows are new, as they are at first
        self._paused = np.zeros(0, dtype=np.bool_)  # rows that sat out a step: the cache cannot continue them

    def check_no_adapter(self) -> None:
        """Raises a ValueError if a policy's adapter is attached to these weights."""
        if self.adapter is not None:
            raise ValueError("The reference's weights have an adapter already: make another environment.")

    def attach(self, adapter: object) -> None:
        """Shares the weights with a policy: the reference disables `adapter`, a `PeftModel` around `model`."""
        self.check_no_adapter()
        self.adapter = adapter

    def copy_model(self) -> Any:
        """Returns a separate causal LM with the reference's weights."""
        return copy.deepcopy(self.model) if self.adapter is None else remove_adapters(copy.deepcopy(self.adapter))

    def _without_adapter(self) -> Any:
        return contextlib.nullcontext() if self.adapter is None else self.adapter.disable_adapter()

    def _is_full(self) -> bool:
        """Whether the cache has as many columns as the model has positions; some models' masks have no more."""
        return self.max_length is not None and self._decoder.num_columns >= self.max_length

    @torch.no_grad()
    def log_probs(self, input_ids: Array, attention_mask: Array) -> NDArray[np.float32]:
        """Next-token log-probabilities, float32 [B, V], of sequences [B, L]."""
        device = self.model.device
        ids, mask = torch.as_tensor(input_ids, device=device), torch.as_tensor(attention_mask, device=device)
        extended, unchanged, last = self._input.match(input_ids, attention_mask)
        if extended.any():
            extended &= ~self._paused
        new = ~(extended | unchanged)
        with self._without_adapter():
            if new.all() or not supports_cache(self.model) or self._is_full():
                self._decoder = new_decoder(self.model)
                self._logits = self._decoder.prefill(ids, mask).logits[:, -1]
                self._paused = np.zeros_like(new)
            else:
                if extended.any():
                    live = torch.as_tensor(extended, device=device)
                    logits = self._decoder.decode_step(torch.as_tensor(last, device=device), live).logits[:, -1]
                    self._logits = torch.where(live[:, None], logits, self._logits)
                    self._paused |= ~extended
                if new.any():
                    rows = torch.as_tensor(np.flatnonzero(new), device=device)
                    self._logits = self._logits.clone()
                    self._logits[rows] = self._decoder.reset_rows(rows, ids[rows], mask[rows]).logits[:, -1]
                    self._paused[new] = False
        self._input.store(input_ids, attention_mask)
        logits = self._logits
        log_probs: NDArray[np.float32] = logits[:, : self.vocab_size].float().log_softmax(dim=-1).cpu().numpy()
        return log_probs

    @torch.no_grad()
    def token_log_probs(
        self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, prefix: NDArray[np.int64] | None = None
    ) -> Tensor:
        """log pi_ref of the tokens in the last T columns of sequences [B, L], float32 [B, T], in one parallel pass.

        `prefix`, int64 [B] on the host, has the same number for sequences with the same prompt; None: they are found.
        """
        home, device = input_ids.device, self.model.device
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        rows = max(1, MAX_LOGITS // (num_tokens * self.config.vocab_size))
        chunks = []
        for start in range(0, len(input_ids), rows):
            ids, mask = input_ids[start : start + rows], attention_mask[start : start + rows]
            share = True if prefix is None else prefix[start : start + rows]
            with self._without_adapter():
                logits = forward_completions(self.model, ids, mask, num_tokens, share).logits
            logits = logits[..., : self.vocab_size].float()  # the model's own, in bfloat16, are freed
            tokens = ids[:, -num_tokens:, None]
            chunks.append(logits.gather(2, tokens).squeeze(2) - logits.logsumexp(dim=2))
            del logits  # else two chunks are in memory together
        return torch.cat(chunks).to(home)

    @torch.no_grad()
    def all_log_probs(
        self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, prefix: NDArray[np.int64] | None = None
    ) -> Tensor:
        """log pi_ref of all V tokens in the last T columns of sequences [B, L], float32 [B, T, V], in one pass."""
        home, device = input_ids.device, self.model.device
        inputs = (input_ids.to(device), attention_mask.to(device), num_tokens, True if prefix is None else prefix)
        with self._without_adapter():
            logits: Tensor = forward_completions(self.model, *inputs).logits[..., : self.vocab_size].float()
        return logits.log_softmax(dim=-1).to(home)

    def __deepcopy__(self, memo: dict[int, object]) -> CausalLMReference:
        """Copies the weights, not the cache."""
        other = copy.copy(self)
        other.model, other.adapter = self.copy_model().eval().requires_grad_(False), None
        other.config = other.model.config.get_text_config()
        return other

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_input": IncrementalInput(), "_decoder": None, "_logits": torch.zeros(0, 0)}


def _described(model: object) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
