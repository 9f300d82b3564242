"""The policy: any Hugging Face causal language model with a linear value head.

    pi(a|s) = softmax(logits / temperature)_a,  over the allowed ones of the first V tokens
    V(s)    = w . h(s) + b,                     h the last hidden state of the policy's trunk, or of a critic's own

The short methods at the end of the class call functions of other files: construction, loading and saving, scale.
"""

from __future__ import annotations

import copy
from functools import partial
from os import PathLike
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.files import resolved, write_folder
from agents.policy.adapter_checks import check_adapter
from agents.policy.categorical import sample_categorical
from agents.policy.checkpointing import enable_checkpointing
from agents.policy.compiler import prepare_compilation
from agents.policy.construction import policy_at_reference
from agents.policy.evaluation import ActionEvaluation, FullEvaluation, evaluate_all_actions
from agents.policy.saved_policy import STALE, read_policy, write_policy
from agents.policy.settings import check_model, check_separate_critic, check_temperature, check_vocab_size
from agents.policy.value_head import ValueHead
from textenv import EnvLike
from textenv.lm import (
    CausalLM,
    SharePrefix,
    forward_completions,
    forward_sequences,
    fuse_activations,
    pack_left,
    supports_cache,
    trunk_of,
)


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
        self, model: CausalLM, *, vocab_size: int | None = None, temperature: float = 1.0, separate_critic: bool = False
    ) -> None:
        super().__init__()
        check_model(model)
        check_separate_critic(separate_critic)
        self.temperature = check_temperature(temperature)
        check_adapter(model)
        self.model: Any = fuse_activations(model)
        config = model.config.get_text_config()
        self.vocab_size = check_vocab_size(vocab_size, config.vocab_size)
        supports_cache(model)  # finds out how it is read, before its trunk is copied
        self.critic = copy.deepcopy(self.trunk) if separate_critic else None
        self.value_head = ValueHead(config.hidden_size, model.device)
        self.gradient_checkpointing = False
        self.share_prefixes = True  # prefix sharing: compute the common prefixes of sequences once
        self.train(False)

    @property
    def trunk(self) -> Any:
        """The model without its output layer."""
        return trunk_of(self.model)

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a `PeftModel` on the reference's weights."""
        return hasattr(self.model, "get_base_model")

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.value_head.weight.device

    def train(self, mode: bool = True) -> TransformerPolicy:
        """Stays in eval mode, see the class."""
        return super().train(False)

    # -- pi and V ----------------------------------------------------------------------------------------------------

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

        `source` is a generator, or numbers in [0, 1) drawn before, [B, 1].
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
        """Returns `next_token_logits`, -inf where `action_mask` [B, V] is False, and V(s) of the same states, [B]."""
        inputs = (*self._packed(input_ids, attention_mask), 1, False)
        shared = self.critic is None
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
        prefix: NDArray[np.int64] | None = None,
    ) -> ActionEvaluation:
        """Computes log pi and V of the last `num_tokens` columns of sequences [B, L] in one pass, with prefix sharing.

        Inputs [B, T, L] have one observation per token, with a_t in its last column (`agents.sampling.external`).

        Args:
            input_ids, attention_mask: sequences, with a_t in column L - T + t.
            num_tokens: T.
            action_mask: bool [B, T, V], the allowed tokens; None if nothing is masked.
            values: whether to compute V.
            prefix: int64 [B] on the host: sequences with the same number have the same prompt, see `share`.
        """
        if input_ids.ndim == 3:
            masks = None if action_mask is None else action_mask.flatten(0, 1)[:, None]
            each = self.evaluate_actions(input_ids.flatten(0, 1), attention_mask.flatten(0, 1), 1, masks, values)
            log_probs = each.log_probs.view(-1, num_tokens)
            return ActionEvaluation(log_probs, None if each.values is None else each.values.view(-1, num_tokens))
        inputs, shared = (input_ids, attention_mask, num_tokens), values and self.critic is None
        output = forward_completions(self.model, *inputs, self.share(prefix), output_hidden_states=shared)
        logits = self._scaled(output.logits, action_mask)
        tokens = input_ids[:, -num_tokens:]
        # one kernel for log-softmax and gather, forward and backward
        negative = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        log_probs = -negative.view(tokens.shape).float()
        if shared:
            return ActionEvaluation(log_probs, self.values_from_hidden(output.hidden_states[-1], num_tokens))
        return ActionEvaluation(log_probs, self.values(*inputs, prefix) if values else None)

    def evaluate_all_actions(self, *args: Any, **kwargs: Any) -> FullEvaluation:
        """`evaluate_actions` of sequences [B, L], and log pi of all tokens, see the file of the function."""
        return evaluate_all_actions(self, *args, **kwargs)

    def forward(
        self,
        *args: Any,
        method: Literal["evaluate_actions", "evaluate_all_actions", "values"] = "evaluate_actions",
        **kwargs: Any,
    ) -> Any:
        """Calls the method: a wrapped or compiled module only intercepts `forward`."""
        return getattr(self, method)(*args, **kwargs)

    def values(
        self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int, prefix: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Computes V(s_t) alone, [B, T], in one pass without logits. Arguments as of `evaluate_actions`."""
        if input_ids.ndim == 3:
            return self.values(input_ids.flatten(0, 1), attention_mask.flatten(0, 1), 1).view(-1, num_tokens)
        trunk = self.trunk if self.critic is None else self.critic
        inputs = (input_ids[:, :-1], attention_mask[:, :-1], num_tokens)
        output = forward_sequences(trunk, *inputs, self.share(prefix))
        return self.values_from_hidden(output.last_hidden_state, num_tokens)

    def share(self, prefix: NDArray[np.int64] | None) -> SharePrefix:
        """How prompts that sequences share are found: by `prefix`, or if it is None by their tokens; False: not."""
        return self.share_prefixes if prefix is None or not self.share_prefixes else prefix

    def values_from_hidden(self, hidden: Tensor, num_tokens: int) -> Tensor:
        """Computes V in the last T columns of hidden states [B, L, H], [B, T]; a ValueError for any other shape."""
        value: Tensor = self.value_head(hidden[:, -num_tokens:])
        return value

    # -- construction, loading, saving -------------------------------------------------------------------------------

    @classmethod
    def for_env(
        cls,
        env: EnvLike,
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
            temperature, separate_critic: see the class.
            hidden_size, num_hidden_layers, num_attention_heads: of the small GPT-2.
            seed: seeds the initialisation of new weights.
            lora: a `peft.LoraConfig`: the policy is an adapter (Hu et al. 2021, arXiv:2106.09685) on the weights of a
                language-model reference, which are not copied; the reference computes with the adapter off.

        Raises:
            TypeError: not an environment of textenv.
            ValueError: another argument breaks the rule that the message names.
        """
        sizes = (hidden_size, num_hidden_layers, num_attention_heads)
        return policy_at_reference(cls, env, temperature, separate_critic, sizes, seed, lora)

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
        Without `reference` the merged model is loaded. Only with `trust_remote_code` does the folder or hub id run
        Python code of its own. Weights must be safetensors.

        Raises:
            DamagedFile: a file of the folder is missing or was changed.
            ValueError: a later format, not a causal language model, or an argument breaks the rule that the message
                names.
        """
        return read_policy(cls, path, vocab_size, temperature, separate_critic, reference, dtype, trust_remote_code)

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Saves a Hugging Face checkpoint, which `AutoModelForCausalLM` loads, and the critic in the same folder.

        An adapter is merged into the checkpoint, and also saved separately in the subfolder `adapter`. A crash leaves
        the earlier content of the folder or the new one. Files of others are kept if they have other names than those
        in agents/policy/saved_policy.py. `StorageError`: the disk is full. `ValueError`: the folder has a
        `manifest.json` of another program.
        """
        write_folder(resolved(folder), partial(write_policy, self), replaced=STALE)

    # -- scale -------------------------------------------------------------------------------------------------------

    def cast(self, dtype: torch.dtype) -> TransformerPolicy:
        """Converts the weights to `dtype` in place; value head, adapter and log-probabilities stay in float32."""
        if not self.has_adapter:  # the weights below an adapter are the reference's, in its dtype
            self.model.to(dtype)
        if self.critic is not None:
            self.critic.to(dtype)
        return self

    def gradient_checkpointing_enable(self) -> None:
        """Switches gradient checkpointing on, see the file of the function; a ValueError if the model has none."""
        enable_checkpointing(self)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles `forward`, the update's pass, with kernels for all lengths; arguments are those of torch.compile.

        The first update takes a minute longer. Sampling is not compiled.

        Raises:
            ValueError: the policy is on a CPU and there is no C++ compiler.
        """
        prepare_compilation(self)
        super().compile(*args, **{"dynamic": True, **kwargs})
