"""The policy: any Hugging Face causal language model with a linear value head."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.files import resolved, write_folder
from agents.policy.adapters import check_adapter, load_adapter
from agents.policy.categorical import sample_categorical
from agents.policy.compiler import check_compiler
from agents.policy.imitation import imitate
from agents.policy.saved_policy import STALE, read_policy, write_policy
from agents.ranges import check_integer, is_number
from textenv import get_mdp
from textenv.lm import (
    base_model,
    forward_completions,
    forward_sequences,
    fuse_activations,
    pack_left,
    supports_cache,
    trunk_of,
)
from textenv.references import CausalLMReference

LARGEST_SIZE = 65_536  # of the small GPT-2 that `for_env` creates


class ActionEvaluation(NamedTuple):
    """log pi(a_t|s_t) and V(s_t) of B completions, [B, T] each; `values` is None if they were not requested."""

    log_probs: Tensor
    values: Tensor | None


class TransformerPolicy(nn.Module):
    """pi(a|s) = softmax(logits / temperature) over the allowed ones of the first `vocab_size` tokens.

    Sampling, the KL and the update use the same scaled and masked logits. The policy is always in eval mode: with
    dropout in the update, the ratio to the behaviour policy would not be 1 before the first step.

    Args:
        model: a causal LM, or a `PeftModel` around one with one LoRA adapter, which is what is trained.
        vocab_size: V; logits beyond it (padded vocabularies) are cut off. By default the model's vocabulary size.
        temperature: divides the logits everywhere.
        separate_critic: whether the critic has its own trunk, a copy of the model's. Otherwise it is one linear layer
            on the policy's trunk.

    Raises:
        TypeError: the model is no causal LM of transformers.
        ValueError: another argument, or an adapter, breaks the rule that the message names.
    """

    def __init__(
        self, model: Any, *, vocab_size: int | None = None, temperature: float = 1.0, separate_critic: bool = False
    ) -> None:
        super().__init__()
        is_module = isinstance(model, nn.Module)
        if not is_module or getattr(model, "get_output_embeddings", lambda: None)() is None:
            found = type(model).__name__ if is_module else " ".join(f"{model!r:.100}".split())
            raise TypeError(
                f"A policy needs a causal language model of transformers, got {found}; "
                "TransformerPolicy.from_pretrained loads one from a path."
            )
        _check_separate_critic(separate_critic)
        if not is_number(temperature) or not 1e-10 <= temperature <= 1e10:
            raise ValueError(
                f"temperature must be a finite number > 0, in [1e-10, 1e10], got {temperature!r}; for the likeliest "
                "token, predict() has deterministic=True."
            )
        check_adapter(model)
        self.model = fuse_activations(model)
        self.temperature = float(temperature)
        config = model.config.get_text_config()
        self.vocab_size = check_integer("vocab_size", config.vocab_size if vocab_size is None else vocab_size, 1)
        if self.vocab_size > config.vocab_size:
            raise ValueError(
                f"vocab_size must be at most the model's, {config.vocab_size}, got {self.vocab_size}; leave it out to "
                "use the model's."
            )
        supports_cache(model)  # finds out how it is read, before its trunk is copied
        self.critic = copy.deepcopy(self.trunk) if separate_critic else None
        # skip_init: the default initialisation would draw from the global generator
        self.value_head: nn.Linear = nn.utils.skip_init(nn.Linear, config.hidden_size, 1, device=model.device)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.value_head.weight)  # V = 0 at first
        nn.init.zeros_(self.value_head.bias)
        self.gradient_checkpointing = False
        self.share_prefixes = True  # prefix sharing: compute the common prefixes of sequences once
        self.train(False)

    # -- construction, loading, saving -------------------------------------------------------------------------------

    @classmethod
    def for_env(
        cls,
        env: Any,
        *,
        temperature: float = 1.0,
        separate_critic: bool = False,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        seed: int = 0,
        lora: Any = None,
    ) -> TransformerPolicy:
        """Returns a policy that starts at the environment's reference, with KL < 1e-3.

        A language-model reference is copied. With a temperature other than 1 the copy is no longer at the reference.
        For any other reference, such as a table, a small GPT-2 is created and trained to imitate it (seconds on toys).

        Args:
            env: an environment of textenv.
            temperature: divides the logits everywhere.
            separate_critic: whether the critic has its own trunk.
            hidden_size: of the small GPT-2, like the next two.
            num_hidden_layers: see `hidden_size`.
            num_attention_heads: see `hidden_size`.
            seed: seeds the initialisation of new weights.
            lora: a `peft.LoraConfig`: the policy is an adapter (Hu et al. 2021, arXiv:2106.09685) on the weights of a
                language-model reference, which are not copied; the reference computes with the adapter off.

        Raises:
            TypeError: not an environment of textenv.
            ValueError: another argument breaks the rule that the message names.
        """
        mdp = get_mdp(env)
        _check_separate_critic(separate_critic)
        sizes = {"hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers}
        for name, size in (sizes | {"num_attention_heads": num_attention_heads}).items():
            check_integer(name, size, 1, LARGEST_SIZE)
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {hidden_size} and {num_attention_heads}."
            )
        if lora is not None:
            with torch.random.fork_rng(devices=[]):  # peft draws an adapter's weights from the global generator
                torch.manual_seed(seed)
                model = load_adapter(mdp.reference, lora)
            return cls(model, vocab_size=mdp.vocab_size, temperature=temperature, separate_critic=separate_critic)
        if isinstance(mdp.reference, CausalLMReference):
            model = mdp.reference.copy_model().requires_grad_(True)
            return cls(model, vocab_size=mdp.vocab_size, temperature=temperature, separate_critic=separate_critic)
        config = GPT2Config(  # learned positions: a table can count repetitions of one token, rotary ones cannot
            vocab_size=mdp.vocab_size,
            n_embd=hidden_size,
            n_inner=2 * hidden_size,
            n_layer=num_hidden_layers,
            n_head=num_attention_heads,
            n_positions=mdp.prompt_width + mdp.max_new_tokens,
            activation_function="relu",
            bos_token_id=None,
            eos_token_id=mdp.eos_token_ids,
            pad_token_id=None,
        )
        with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
            torch.manual_seed(seed)
            policy = cls(GPT2LMHeadModel(config), temperature=temperature)
        imitate(policy, mdp, seed=seed)
        if separate_critic:
            policy.critic = copy.deepcopy(policy.model.base_model)
        return policy

    @classmethod
    def from_pretrained(
        cls,
        path: str | PathLike[str],
        *,
        vocab_size: int | None = None,
        temperature: float | None = None,
        separate_critic: bool | None = None,
        reference: Any = None,
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> TransformerPolicy:
        """Loads a folder of `save_pretrained`, or any Hugging Face causal LM (path or hub id) with a new value head.

        Arguments that are None keep their saved values. A saved adapter is loaded onto the weights of `reference` (an
        environment's `mdp.reference`) and can be trained further; so is a folder that holds nothing but a LoRA adapter.
        Without `reference` the merged model is loaded.
        Only with `trust_remote_code` does the folder or hub id run Python code of its own. Weights must be safetensors.

        Raises:
            DamagedFile: a file of the folder is missing or was changed.
            ValueError: a later format, not a causal language model, or an argument breaks the rule that the message
                names.
        """
        if separate_critic is not None:
            _check_separate_critic(separate_critic)
        if reference is not None and (
            isinstance(reference, type) or not callable(getattr(reference, "log_probs", None))
        ):
            raise ValueError(
                "reference must be an environment's reference, get_mdp(env).reference, or None, got "
                f"{reference!r:.100}."
            )
        if dtype is not None and not (
            isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1
        ):
            raise ValueError(
                f"dtype must be a torch.dtype of floating-point numbers, such as torch.bfloat16, got {dtype!r:.100}."
            )
        policy: TransformerPolicy = read_policy(
            cls, path, vocab_size, temperature, separate_critic, reference, dtype, trust_remote_code
        )
        return policy

    def cast(self, dtype: torch.dtype) -> TransformerPolicy:
        """Converts the weights to `dtype` in place; value head, adapter and log-probabilities stay in float32."""
        if not self.has_adapter:  # the weights below an adapter are the reference's, in its dtype
            self.model.to(dtype)
        if self.critic is not None:
            self.critic.to(dtype)
        return self

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Saves a Hugging Face checkpoint, which `AutoModelForCausalLM` loads, and the critic in the same folder.

        An adapter is merged into the checkpoint, and also saved separately in the subfolder `adapter`. A crash leaves
        the earlier content of the folder or the new one. Files of others in the folder are kept.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        write_folder(resolved(folder), partial(write_policy, self), replaced=STALE)

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a `PeftModel` on the reference's weights."""
        return hasattr(self.model, "get_base_model")

    @property
    def trunk(self) -> Any:
        """The model without its output layer."""
        return trunk_of(self.model)

    def train(self, mode: bool = True) -> TransformerPolicy:
        """Stays in eval mode whatever `mode` is: see the class docstring."""
        return super().train(False)

    def gradient_checkpointing_enable(self) -> None:
        """Switches gradient checkpointing on: the backward pass recomputes activations from each layer's input.

        Raises:
            ValueError: the model does not support it.
        """
        if not self.model.supports_gradient_checkpointing:
            raise ValueError(f"{type(self.model).__name__} has no gradient checkpointing.")
        for trunk in filter(None, (self.model, self.critic)):
            newer = getattr(trunk, "activation_checkpointing_enable", None)  # its name since transformers 5.20
            (newer or trunk.gradient_checkpointing_enable)({"use_reentrant": False})
        self.gradient_checkpointing = True
        self.share_prefixes = False  # transformers drops the KV cache of a checkpointed layer

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the update's forward and backward pass with `torch.compile`, with kernels for all lengths.

        The first update takes a minute longer. Only calls of the policy itself (`forward`) are compiled; sampling is
        not. Arguments are those of torch.compile.

        Raises:
            ValueError: the policy is on a CPU and there is no C++ compiler.
        """
        if self.device.type == "cpu":
            check_compiler()
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.no_grad():  # on its first call transformers adds hooks to the model, which cannot be compiled
            self.evaluate_actions(ids, torch.ones_like(ids), 1)
        super().compile(*args, **{"dynamic": True, **kwargs})

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """Puts the layers, but not the modules inside them (dropout), in training mode, as transformers requires."""
        if not self.gradient_checkpointing or not torch.is_grad_enabled():
            yield
            return
        layers = [layer for layer in self.modules() if isinstance(layer, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
            if isinstance(getattr(layer, "dropout", None), float):  # OPT's layers apply dropout themselves
                layer.dropout = 0.0  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.value_head.weight.device

    # -- the distribution --------------------------------------------------------------------------------------------

    def log_softmax(self, logits: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Returns log pi(.|s) in float32, [..., V], from the model's logits; -inf where `action_mask` is False."""
        return self._scaled(logits, action_mask).log_softmax(dim=-1).float()

    def _scaled(self, logits: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """Cuts the model's logits to V, divides them by the temperature and masks them."""
        scaled = logits[..., : self.vocab_size].to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1.0:
            scaled = scaled / self.temperature
        return scaled if action_mask is None else scaled.masked_fill(~action_mask, -torch.inf)

    def sample(
        self, logits: Tensor, action_mask: Tensor | None, source: torch.Generator | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Samples one token per row of the model's logits [B, V]; returns the tokens and their log pi, [B] each.

        `source` is a generator, or numbers in [0, 1) drawn before, float64 [B, 1].
        """
        probs = self._scaled(logits, action_mask).softmax(dim=-1)
        token = sample_categorical(probs, source)
        return token, probs.gather(1, token[:, None]).squeeze(1).log().float()

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """Returns logits over temperature, [B, V], of the next token of sequences [B, L].

        Arguments are arrays or tensors, with padding anywhere. `env.unwrapped.bind_policy` and `textenv.exact` call it.
        """
        output = forward_sequences(self.model, *self._packed(input_ids, attention_mask), 1, False, logits_to_keep=1)
        return self._scaled(output.logits[:, -1])

    def next_token_logits_and_values(
        self, input_ids: Tensor, attention_mask: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns `next_token_logits`, -inf where `action_mask` [B, V] is False, and V(s) of the same states, [B].

        For agents that act token by token; `evaluate_actions` computes whole completions in one pass.
        """
        inputs = (*self._packed(input_ids, attention_mask), 1, False)
        shared = self.critic is None
        with self._checkpointed():
            output = forward_sequences(self.model, *inputs, logits_to_keep=1, output_hidden_states=shared)
            hidden = output.hidden_states[-1] if shared else forward_sequences(self.critic, *inputs).last_hidden_state
        return self._scaled(output.logits[:, -1], action_mask), self.values_from_hidden(hidden, 1).squeeze(1)

    def _packed(self, input_ids: Any, attention_mask: Any) -> tuple[Tensor, Tensor]:
        """Whole sequences with padding moved to the left, so the last column is a token."""
        return pack_left(*(torch.as_tensor(array, device=self.device) for array in (input_ids, attention_mask)))

    def evaluate_actions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        action_mask: Tensor | None = None,
        values: bool = True,
    ) -> ActionEvaluation:
        """Computes log pi and V of the last `num_tokens` columns of sequences [B, L] in one pass, with prefix sharing.

        Inputs [B, T, L] have one observation per token, with a_t in its last column (`agents.sampling.external`).

        Args:
            input_ids, attention_mask: sequences, with a_t in column L - T + t.
            num_tokens: T.
            action_mask: bool [B, T, V], the allowed tokens; None if nothing is masked.
            values: whether to compute V.
        """
        if input_ids.ndim == 3:
            masks = None if action_mask is None else action_mask.flatten(0, 1)[:, None]
            each = self.evaluate_actions(input_ids.flatten(0, 1), attention_mask.flatten(0, 1), 1, masks, values)
            log_probs = each.log_probs.view(-1, num_tokens)
            return ActionEvaluation(log_probs, None if each.values is None else each.values.view(-1, num_tokens))
        shared = values and self.critic is None
        with self._checkpointed():
            output = forward_completions(
                self.model,
                input_ids,
                attention_mask,
                num_tokens,
                share_prefix=self.share_prefixes,
                output_hidden_states=shared,
            )
        logits = self._scaled(output.logits, action_mask)
        tokens = input_ids[:, -num_tokens:]
        # one kernel for log-softmax and gather, forward and backward
        negative = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        log_probs = -negative.view(tokens.shape).float()
        if not values:
            return ActionEvaluation(log_probs, None)
        if shared:
            return ActionEvaluation(log_probs, self.values_from_hidden(output.hidden_states[-1], num_tokens))
        return ActionEvaluation(log_probs, self.values(input_ids, attention_mask, num_tokens))

    def forward(
        self, *args: Any, method: Literal["evaluate_actions", "values"] = "evaluate_actions", **kwargs: Any
    ) -> Any:
        """Calls `evaluate_actions` or `values`: a wrapped or compiled module only intercepts `forward`."""
        return getattr(self, method)(*args, **kwargs)

    def values(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """Computes V(s_t) alone, [B, T], in one pass without logits. Arguments as of `evaluate_actions`."""
        if input_ids.ndim == 3:
            return self.values(input_ids.flatten(0, 1), attention_mask.flatten(0, 1), 1).view(-1, num_tokens)
        trunk = self.trunk if self.critic is None else self.critic
        inputs = (input_ids[:, :-1], attention_mask[:, :-1], num_tokens)
        with self._checkpointed():
            output = forward_sequences(trunk, *inputs, self.share_prefixes)
        return self.values_from_hidden(output.last_hidden_state, num_tokens)

    def values_from_hidden(self, hidden: Tensor, num_tokens: int) -> Tensor:
        """Computes V in the last T columns of hidden states [B, L, H], [B, T].

        Raises:
            ValueError: the hidden states have another shape, as Gemma3n's have.
        """
        if hidden.ndim != 3:
            name = type(base_model(self.model)).__name__
            raise ValueError(
                f"V needs last hidden states of the shape [B, L, H]; those of {name} are {list(hidden.shape)}: it can "
                "be a reference, but not a policy."
            )
        value: Tensor = self.value_head(hidden[:, -num_tokens:].to(self.value_head.weight.dtype)).squeeze(2)
        return value


def _check_separate_critic(value: Any) -> None:
    """Raises a ValueError unless the value is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"separate_critic must be True or False, got {value!r:.100}.")
