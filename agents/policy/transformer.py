"""The policy: any Hugging Face causal language model, and a linear value head."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_layers import GradientCheckpointingLayer

from agents.format_version import FORMAT_VERSION, check_format
from agents.policy.adapters import ADAPTER, load_adapter
from agents.policy.categorical import sample_categorical
from agents.policy.compiler import check_compiler
from agents.policy.imitation import imitate
from textenv import get_mdp
from textenv.lm import (
    base_model,
    check_causal,
    forward_completions,
    forward_sequences,
    fuse_activations,
    load_causal_lm,
    pack_left,
    position_ids,
)
from textenv.references import CausalLMReference


class ActionEvaluation(NamedTuple):
    """log pi(a_t|s_t) and V(s_t) of the tokens of B answers, [B, T] each; `values` is None if not asked for."""

    log_probs: Tensor
    values: Tensor | None


class TransformerPolicy(nn.Module):
    """pi(a|s) = softmax(logits / temperature), over the first `vocab_size` tokens that the mask allows.

    The same scaled and masked logits serve sampling, the KL and the update. The policy is always in eval mode: with
    dropout in the update, the ratio to the policy that sampled would not be 1 where nothing has changed.

    Args:
        model: a causal LM.
        vocab_size: V; logits beyond it (padded vocabularies) are cut off. By default all of the model's.
        temperature: divides the logits, everywhere.
        separate_critic: a critic with a trunk of its own (a copy of the model's), instead of one linear layer on the
            policy's.
    """

    def __init__(
        self, model: Any, *, vocab_size: int | None = None, temperature: float = 1.0, separate_critic: bool = False
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(
                f"temperature must be a finite number > 0, got {temperature}; for the likeliest token, predict() has "
                "deterministic=True."
            )
        self.model = fuse_activations(model)
        self.temperature = temperature
        config = model.config.get_text_config()
        self.vocab_size = int(vocab_size or config.vocab_size)
        if self.vocab_size > config.vocab_size:
            raise ValueError(f"The model writes {config.vocab_size} tokens, fewer than vocab_size = {self.vocab_size}.")
        self.critic = copy.deepcopy(self.trunk) if separate_critic else None
        # without drawing from the global generator the weights that are 0 at once
        self.value_head: nn.Linear = nn.utils.skip_init(nn.Linear, config.hidden_size, 1, device=model.device)  # type: ignore[no-untyped-call]
        nn.init.zeros_(self.value_head.weight)  # V = 0 at first, as if nothing were expected
        nn.init.zeros_(self.value_head.bias)
        self.gradient_checkpointing = False
        self.share_prefixes = True  # read those that answers have in common once (`textenv.prefix`)
        self.train(False)

    # -- making, loading, saving -------------------------------------------------------------------------------------

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
        """The policy that starts at the environment's reference, KL < 1e-3.

        A language-model reference is copied (with a temperature other than 1 the copy is at that temperature, and so no
        longer at the reference). With `lora`, a `peft.LoraConfig`, it is not: the policy is an adapter (Hu et al. 2021,
        arXiv:2106.09685) on the reference's own weights, which reads with the adapter off. For a table a small GPT-2 is
        made and trained to imitate it (seconds on a toy); `hidden_size`, `num_hidden_layers` and `num_attention_heads`
        are its. `seed` draws the weights that are new.
        """
        mdp = get_mdp(env)
        if lora is not None:
            with torch.random.fork_rng(devices=[]):  # peft draws an adapter's weights from the global generator
                torch.manual_seed(seed)
                model = load_adapter(mdp.reference, lora)
            return cls(model, vocab_size=mdp.vocab_size, temperature=temperature, separate_critic=separate_critic)
        if isinstance(mdp.reference, CausalLMReference):
            model = mdp.reference.copy_model().requires_grad_(True)
            return cls(model, vocab_size=mdp.vocab_size, temperature=temperature, separate_critic=separate_critic)
        config = GPT2Config(  # learned positions: rotary ones cannot count repetitions of one word, a toy's machine can
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
    ) -> TransformerPolicy:
        """Load a folder of `save_pretrained`, or any Hugging Face causal LM (path or hub id) with a new value head.

        Arguments that are None are as they were saved. Where an adapter was saved, it is put on the weights of
        `reference` (an environment's `mdp.reference`), to be trained on; without one the merged model is loaded.
        """
        folder = Path(path)
        saved = json.loads((folder / "policy.json").read_text()) if (folder / "policy.json").is_file() else {}
        check_format(folder / "policy.json", saved, oldest=1)
        if reference is not None and (folder / ADAPTER).is_dir():
            model = load_adapter(reference, folder / ADAPTER)
        else:
            model = load_causal_lm(path)
            check_causal(model.eval())
        policy = cls(
            model,
            vocab_size=vocab_size or saved.get("vocab_size"),
            temperature=saved.get("temperature", 1.0) if temperature is None else temperature,
            separate_critic=saved.get("separate_critic", False) if separate_critic is None else separate_critic,
        )
        if saved:
            state = load_file(folder / "value_head.safetensors")
            wanted = {name for name in policy.state_dict() if not name.startswith("model.")}
            policy.load_state_dict({name: state[name] for name in wanted & set(state)}, strict=False)
        return policy.cast(getattr(torch, saved.get("dtype", "float32")) if dtype is None else dtype)

    def cast(self, dtype: torch.dtype) -> TransformerPolicy:
        """Hold the weights in `dtype`, in place; V stays in float32, and so do an adapter and the log-probabilities."""
        if not self.has_adapter:  # which sits on the reference's weights, in their dtype
            self.model.to(dtype)
        if self.critic is not None:
            self.critic.to(dtype)
        return self

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write a Hugging Face checkpoint, which `AutoModelForCausalLM` loads, and the critic beside it.

        An adapter is merged into the checkpoint, and stands by itself in the folder `adapter`.
        """
        path = Path(folder)
        if self.has_adapter:
            self.model.save_pretrained(path / ADAPTER)
            copy.deepcopy(self.model).merge_and_unload().save_pretrained(path)
        else:
            self.model.save_pretrained(path)
        self._generation_config().save_pretrained(path)
        critic = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}
        save_file({name: tensor.contiguous() for name, tensor in critic.items()}, path / "value_head.safetensors")
        settings = {
            "format_version": FORMAT_VERSION,
            "vocab_size": self.vocab_size,
            "temperature": self.temperature,
            "separate_critic": self.critic is not None,
            "dtype": "bfloat16" if self.model.dtype == torch.bfloat16 else "float32",
        }
        (path / "policy.json").write_text(json.dumps(settings, indent=2) + "\n")

    def _generation_config(self) -> Any:
        """For `generate`: the temperature, and that the tokenizer has fewer tokens than the model."""
        config = copy.deepcopy(self.model.generation_config)
        if self.temperature != 1.0:
            config.do_sample, config.temperature = True, self.temperature
        if padding := list(range(self.vocab_size, self.model.config.get_text_config().vocab_size)):
            config.suppress_tokens = padding
        return config

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a `PeftModel`, whose weights are another's."""
        return hasattr(self.model, "get_base_model")

    @property
    def trunk(self) -> Any:
        """The model without its output layer."""
        return base_model(self.model).base_model

    def train(self, mode: bool = True) -> TransformerPolicy:
        """Stays in eval mode, whatever is asked for: see the class's docstring."""
        return super().train(False)

    def gradient_checkpointing_enable(self) -> None:
        """From now on keep each layer's input alone for the backward pass, and compute the rest again: less memory.

        Raises:
            ValueError: the model's layers do not know how.
        """
        if not self.model.supports_gradient_checkpointing:
            raise ValueError(f"{type(self.model).__name__} has no gradient checkpointing.")
        for trunk in filter(None, (self.model, self.critic)):
            newer = getattr(trunk, "activation_checkpointing_enable", None)  # its name since transformers 5.20
            (newer or trunk.gradient_checkpointing_enable)({"use_reentrant": False})
        self.gradient_checkpointing = True
        self.share_prefixes = False  # transformers drops the cache of a layer that is checkpointed

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """From now on let `torch.compile` make the kernels of the update's pass, the same for answers of all lengths.

        The first update takes a minute longer. Sampling, and all that is not asked by calling the policy itself, stays
        as it is. Arguments are torch.compile's.

        Raises:
            ValueError: the policy is on a CPU, and there is no C++ compiler.
        """
        if self.device.type == "cpu":
            check_compiler()
        ids = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        with torch.no_grad():  # on its first call transformers puts hooks into the model, which cannot be compiled
            self.evaluate_actions(ids, torch.ones_like(ids), 1)
        super().compile(*args, **{"dynamic": True, **kwargs})

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """transformers checkpoints only layers that are training; what is inside them, dropout too, is not."""
        if not self.gradient_checkpointing or not torch.is_grad_enabled():
            yield
            return
        layers = [layer for layer in self.modules() if isinstance(layer, GradientCheckpointingLayer)]
        for layer in layers:
            layer.training = True
            if isinstance(getattr(layer, "dropout", None), float):  # OPT's layers drop out by themselves
                layer.dropout = 0.0  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.value_head.weight.device

    # -- the distribution --------------------------------------------------------------------------------------------

    def log_softmax(self, logits: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """log pi(.|s) in float32, [..., V], from the model's logits; -inf where `action_mask` is False."""
        return self._scaled(logits, action_mask).log_softmax(dim=-1).float()

    def _scaled(self, logits: Tensor, action_mask: Tensor | None = None) -> Tensor:
        scaled = logits[..., : self.vocab_size].to(torch.promote_types(logits.dtype, torch.float32))
        if self.temperature != 1.0:
            scaled = scaled / self.temperature
        return scaled if action_mask is None else scaled.masked_fill(~action_mask, -torch.inf)

    def sample(
        self, logits: Tensor, action_mask: Tensor | None, source: torch.Generator | Tensor
    ) -> tuple[Tensor, Tensor]:
        """A token of each row of the model's logits [B, V], sampled from pi, and log pi of it, [B] each.

        `source` is a generator, or what it has drawn: numbers in [0, 1), float64 [B, 1].
        """
        probs = self._scaled(logits, action_mask).softmax(dim=-1)
        token = sample_categorical(probs, source)
        return token, probs.gather(1, token[:, None]).squeeze(1).log().float()

    def next_token_logits(self, input_ids: Any, attention_mask: Any) -> Tensor:
        """Logits over temperature, [B, V], of the next token of texts [B, L] (arrays or tensors, blanks anywhere).

        What `env.unwrapped.bind_policy` and `textenv.exact` ask of a policy.
        """
        output = self.model(**self._packed(input_ids, attention_mask), logits_to_keep=1)
        return self._scaled(output.logits[:, -1])

    def next_token_logits_and_values(
        self, input_ids: Tensor, attention_mask: Tensor, action_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `next_token_logits`, -inf where `action_mask` [B, V] is False, and V(s) of the same texts, [B].

        For agents that choose token by token; `evaluate_actions` reads whole answers in one pass.
        """
        texts = self._packed(input_ids, attention_mask)
        with self._checkpointed():
            output = self.model(**texts, logits_to_keep=1, output_hidden_states=self.critic is None)
            hidden = output.hidden_states[-1] if self.critic is None else self.critic(**texts).last_hidden_state
        return self._scaled(output.logits[:, -1], action_mask), self.values_from_hidden(hidden, 1).squeeze(1)

    def _packed(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        """What a model is called with to read whole texts: blanks on the left, so that the last column is a token."""
        ids, mask = (torch.as_tensor(array, device=self.device) for array in (input_ids, attention_mask))
        ids, mask = pack_left(ids, mask)
        return {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids(mask), "use_cache": False}

    def evaluate_actions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        num_tokens: int,
        action_mask: Tensor | None = None,
        values: bool = True,
    ) -> ActionEvaluation:
        """log pi and V of the last `num_tokens` columns of texts [B, L], in parallel, prompts in common once.

        Where each token has a text of its own, [B, T, L], it stands in the last column of it (`agents.episodes`).

        Args:
            input_ids, attention_mask: prompts and answers, answer token t in column L - T + t.
            num_tokens: T.
            action_mask: bool [B, T, V], what the policy was allowed; None where nothing is masked.
            values: whether V is wanted.
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
        # one kernel for log-softmax and choice, forward and back
        surprise = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        log_probs = -surprise.view(tokens.shape).float()
        if not values:
            return ActionEvaluation(log_probs, None)
        if shared:
            return ActionEvaluation(log_probs, self.values_from_hidden(output.hidden_states[-1], num_tokens))
        return ActionEvaluation(log_probs, self.values(input_ids, attention_mask, num_tokens))

    def forward(
        self, *args: Any, method: Literal["evaluate_actions", "values"] = "evaluate_actions", **kwargs: Any
    ) -> Any:
        """`evaluate_actions` or `values`, under the name that is called where a module is wrapped or compiled."""
        return getattr(self, method)(*args, **kwargs)

    def values(self, input_ids: Tensor, attention_mask: Tensor, num_tokens: int) -> Tensor:
        """V(s_t) alone, [B, T]: in parallel through the critic's trunk, no logits. Texts as in `evaluate_actions`."""
        if input_ids.ndim == 3:
            return self.values(input_ids.flatten(0, 1), attention_mask.flatten(0, 1), 1).view(-1, num_tokens)
        trunk = self.trunk if self.critic is None else self.critic
        texts = (input_ids[:, :-1], attention_mask[:, :-1], num_tokens)
        with self._checkpointed():
            output = forward_sequences(trunk, *texts, self.share_prefixes)
        return self.values_from_hidden(output.last_hidden_state, num_tokens)

    def values_from_hidden(self, hidden: Tensor, num_tokens: int) -> Tensor:
        """V in the last T columns of hidden states [B, L, H], [B, T]."""
        value: Tensor = self.value_head(hidden[:, -num_tokens:].to(self.value_head.weight.dtype)).squeeze(2)
        return value
