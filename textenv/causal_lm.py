"""Hugging Face causal language models: reading texts with a KV cache, one parallel pass over answers, a reference."""

from __future__ import annotations

import contextlib
import copy
import inspect
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation
from transformers.cache_utils import Cache, DynamicLayer

from textenv.follower import Follower

# Logits held at once when only a token's log-probability is wanted: 2^26 float32 are 256 MiB.
MAX_LOGITS = 2**26


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only, so that padding on the left shifts nothing. [B, L]."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def pack_left(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same texts without blanks inside or on the right: all padding on the left, as little as possible."""
    width = int(attention_mask.sum(dim=1).max())
    order = attention_mask.long().argsort(dim=1, stable=True)[:, -width:]
    return input_ids.gather(1, order), attention_mask.gather(1, order)


class FusedGELU(NewGELUActivation):
    """GPT-2's activation in one kernel instead of eight; in double precision transformers' own, to the last bit."""

    def forward(self, x: Tensor) -> Tensor:
        """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
        own: Tensor = super().forward(x) if x.dtype == torch.float64 else F.gelu(x, approximate="tanh")
        return own


def fuse_activations(model: Any) -> Any:
    """Put `FusedGELU` in the place of transformers' in a model, and return it: an eighth of an update of GPT-2."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, FusedGELU())
    return model


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, [B, heads, room, d], in the first `filled` columns: a token is written in place.

    transformers' own copies the whole cache for each token.
    """

    keys: Any
    values: Any
    filled = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write more columns; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        start, stop = self.filled, self.filled + key_states.shape[2]
        if stop > self.keys.shape[2]:
            self.keys, self.values = (self._with_room(x, 2 * stop + 64) for x in (self.keys, self.values))
        self.keys[:, :, start:stop], self.values[:, :, start:stop] = key_states, value_states
        self.filled = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]

    def _with_room(self, x: Tensor, room: int) -> Tensor:
        wider = x.new_empty(*x.shape[:2], room, x.shape[3])
        wider[:, :, : self.filled] = x[:, :, : self.filled]
        return wider

    def get_seq_length(self) -> int:
        """The columns that are filled."""
        return self.filled


class KVReader:
    """Reads B texts token by token: each token passes through the model once.

    The cache's columns are in order of arrival, not of the text: a model with positions in its keys (rotary) or its
    inputs (learned) attends by position ids and mask alone. So one row can begin anew in the middle of the others.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        bare = model.get_base_model() if hasattr(model, "get_base_model") else model  # within an adapter
        renamed = "cache" in inspect.signature(bare.forward).parameters  # since transformers 5.24
        self._cache_argument = "cache" if renamed else "past_key_values"
        self.cache: Any = None
        self.mask = torch.zeros((0, 0), dtype=torch.long)
        self.length = torch.zeros(0, dtype=torch.long)

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Read texts [B, L] from their start; the model's output, with logits [B, 1, V] of the next token."""
        ids, mask = pack_left(input_ids, attention_mask)
        self.cache = Cache(layer_class_to_replicate=RoomyLayer)
        self.mask, self.length = mask.long(), mask.long().sum(dim=1)
        return self._forward(ids, position_ids(mask))

    def append(self, tokens: Tensor, reads: Tensor | None = None) -> Any:
        """Read one more token of each text, [B]; the model's output, with logits [B, 1, V].

        Where `reads` (bool [B]) is False the text stays as it was, and the logits mean nothing.
        """
        reads = torch.ones_like(tokens, dtype=torch.bool) if reads is None else reads
        self.mask = torch.cat([self.mask, reads[:, None].long()], dim=1)
        self.length = self.length + reads
        return self._forward(tokens[:, None], self.length[:, None] - 1)

    def keep(self, rows: Tensor) -> None:
        """Go on with the texts `rows` [K] alone, which cost nothing for the others from here on."""
        self.mask, self.length = self.mask[rows], self.length[rows]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]

    def replace(self, rows: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Rows `rows` [K] become other texts, read from their start; the model's output for those rows."""
        other = KVReader(self.model)
        output = other.read(input_ids, attention_mask)
        width = other.mask.shape[1]
        self._keep_columns(self.mask.any(dim=0), at_least=width)
        self.mask[rows] = 0
        self.mask[rows, :width] = other.mask
        self.length[rows] = other.length
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys[rows, :, :width] = theirs.keys[:, :, :width]
            mine.values[rows, :, :width] = theirs.values[:, :, :width]
        return output

    def _keep_columns(self, used: Tensor, at_least: int) -> None:
        """Drop the columns that no text uses any more; then have `at_least` so many, blank ones added on the right."""
        missing = max(0, at_least - int(used.sum()))
        self.mask = F.pad(self.mask[:, used], (0, missing))
        for layer in self.cache.layers:
            filled = layer.filled
            layer.keys = F.pad(layer.keys[:, :, :filled][:, :, used], (0, 0, 0, missing))
            layer.values = F.pad(layer.values[:, :, :filled][:, :, used], (0, 0, 0, missing))
            layer.filled = self.mask.shape[1]

    def _forward(self, input_ids: Tensor, positions: Tensor) -> Any:
        return self.model(
            input_ids=input_ids,
            attention_mask=self.mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: self.cache},
        )


def forward_answers(model: Any, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, **kwargs: Any) -> Any:
    """One parallel pass over texts [B, L]: the model's output, with logits [B, T, V] for the last T columns.

    logits[:, t] is what the model says *before* it reads column L - T + t, so the last column is not read at all.
    """
    return model(
        input_ids=input_ids[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids(attention_mask[:, :-1]),
        use_cache=False,
        logits_to_keep=num_tokens,
        **kwargs,
    )


class CausalLMReference:
    """A frozen causal language model as reference.

    Stepping an environment reads each token once (a KV cache that follows the rows); `token_log_probs` scores whole
    answers in one parallel pass.

    Args:
        model: a Hugging Face causal LM, which is copied so that training the original cannot move the reference, or a
            path or hub id to load one from.
        vocab_size: V, if the tokenizer has fewer tokens than the model has logits (padded vocabularies); the logits
            beyond V are cut off.

    Raises:
        ValueError: the model has fewer logits than V, or so many more that they cannot be padding.
        TypeError: not a causal LM.
    """

    full_support = True

    def __init__(self, model: Any, *, vocab_size: int | None = None) -> None:
        if isinstance(model, str | PathLike):
            model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        elif hasattr(model, "get_output_embeddings") and model.get_output_embeddings() is not None:
            model = copy.deepcopy(model)
        else:
            raise TypeError(
                "A reference must be None, have log_probs(input_ids, attention_mask), or be a causal language model "
                f"or a path to one, got {type(model).__name__}."
            )
        self.model = fuse_activations(model).eval().requires_grad_(False)
        self.adapter: Any = None
        self.config = model.config.get_text_config()
        self.vocab_size = int(vocab_size or self.config.vocab_size)
        padding = self.config.vocab_size - self.vocab_size
        if not 0 <= padding <= max(128, self.vocab_size // 20):  # models pad their vocabularies to round numbers
            raise ValueError(
                f"The reference has a vocabulary of {self.config.vocab_size} tokens, the tokenizer one of "
                f"{self.vocab_size}; they must be the same, token for token, but for some padding of the model's."
            )
        generation = getattr(model, "generation_config", None)
        eos_token_id = getattr(generation, "eos_token_id", None)
        self.eos_token_id = self.config.eos_token_id if eos_token_id is None else eos_token_id
        self.max_length: int | None = getattr(self.config, "max_position_embeddings", None)
        self._follower, self._reader, self._logits = Follower(), KVReader(self.model), torch.zeros(0, 0)
        # A sliding window counts columns of the cache, which are not in text order here: such models are read anew.
        self._cached = not getattr(self.config, "sliding_window", None)

    def check_free(self) -> None:
        """Raise a ValueError if a policy's adapter sits on these weights."""
        if self.adapter is not None:
            raise ValueError("The reference's weights carry an adapter already: make another environment for another.")

    def attach(self, adapter: Any) -> None:
        """Share these weights with a policy: `adapter`, a `PeftModel` around `model`, is off whenever this reads."""
        self.check_free()
        self.adapter = adapter

    def copy_of_model(self) -> Any:
        """A causal LM of its own with the reference's weights."""
        return copy.deepcopy(self.model) if self.adapter is None else copy.deepcopy(self.adapter).unload()

    def _adapter_off(self) -> Any:
        return contextlib.nullcontext() if self.adapter is None else self.adapter.disable_adapter()

    @torch.no_grad()
    def log_probs(self, input_ids: NDArray[Any], attention_mask: NDArray[Any]) -> NDArray[np.float32]:
        """Next-token log-probabilities, float32 [B, V], of the texts [B, L]."""
        device = self.model.device
        ids, mask = torch.as_tensor(input_ids, device=device), torch.as_tensor(attention_mask, device=device)
        follows, unchanged, last = self._follower.follow(input_ids, attention_mask)
        new = ~(follows | unchanged)
        with self._adapter_off():
            if new.all() or not self._cached:
                self._logits = self._reader.read(ids, mask).logits[:, -1]
            else:
                if follows.any():
                    reads = torch.as_tensor(follows, device=device)
                    logits = self._reader.append(torch.as_tensor(last, device=device), reads).logits[:, -1]
                    self._logits = torch.where(reads[:, None], logits, self._logits)
                if new.any():
                    rows = torch.as_tensor(np.flatnonzero(new), device=device)
                    self._logits = self._logits.clone()
                    self._logits[rows] = self._reader.replace(rows, ids[rows], mask[rows]).logits[:, -1]
        self._follower.remember(input_ids, attention_mask)
        logits = self._logits
        log_probs: NDArray[np.float32] = logits[:, : self.vocab_size].float().log_softmax(dim=-1).cpu().numpy()
        return log_probs

    @torch.no_grad()
    def token_log_probs(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """log pi_ref of the tokens in the last T columns of texts [B, L], in one parallel pass. float32 [B, T]."""
        home, device = input_ids.device, self.model.device
        input_ids, attention_mask = input_ids.to(device), attention_mask.to(device)
        rows = max(1, MAX_LOGITS // (num_tokens * self.config.vocab_size))
        chunks = []
        for start in range(0, len(input_ids), rows):
            ids, mask = input_ids[start : start + rows], attention_mask[start : start + rows]
            with self._adapter_off():
                logits = forward_answers(self.model, ids, mask, num_tokens).logits[..., : self.vocab_size].float()
            tokens = ids[:, -num_tokens:, None]
            chunks.append(logits.gather(2, tokens).squeeze(2) - logits.logsumexp(dim=2))
        return torch.cat(chunks).to(home)

    def __deepcopy__(self, memo: dict[int, Any]) -> CausalLMReference:
        """A copy of the weights; the cache stays behind."""
        return CausalLMReference(self.copy_of_model(), vocab_size=self.vocab_size)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_follower": Follower(), "_reader": None, "_logits": torch.zeros(0, 0)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reader = KVReader(self.model)
