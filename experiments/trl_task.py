"""Whether TRL reads a task as it is: the same prompts, tokens and end tokens. Otherwise the task is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from agents.policy import TransformerPolicy
from textenv import TextMDP
from textenv.data import messages_of
from textenv.references import CausalLMReference


def check_task(mdp: TextMDP, policy: TransformerPolicy, name: str) -> None:
    """Checks that a trainer samples from the policy, and ends completions, as an evaluation does.

    Args:
        mdp: the task.
        policy: the policy to train.
        name: the name of the trainer, for messages.

    Raises:
        ValueError: the reference is no language model, or something of the task or of the policy would differ.
    """
    if not isinstance(mdp.reference, CausalLMReference):
        raise ValueError(
            f"{name} needs a task whose reference is a causal language model, got {type(mdp.reference).__name__}; "
            "train this one with the agents of this project or of Stable-Baselines3."
        )
    tokenizer: Any = mdp.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"{name} needs a Hugging Face tokenizer, got {type(tokenizer).__name__}; pass that of the model."
        )
    if policy.has_adapter or policy.temperature != 1.0:
        found = "one with an adapter" if policy.has_adapter else f"temperature {policy.temperature:g}"
        raise ValueError(f"{name} needs a policy with temperature 1 and without an adapter, got {found}.")
    if (size := policy.model.config.get_text_config().vocab_size) != mdp.vocab_size:
        raise ValueError(
            f"{name} samples from all logits of the model, so it must have as many as the tokenizer has tokens, "
            f"{mdp.vocab_size}, got {size}; resize the model's vocabulary."
        )
    if (ends := end_tokens(policy.model, tokenizer)) != set(mdp.eos_token_ids):
        raise ValueError(
            f"{name} ends completions at the EOS tokens of the tokenizer and of the model's generation config, which "
            f"must be those of the task, {sorted(mdp.eos_token_ids)}, got {sorted(ends)}; set them there."
        )
    kept = zip(mdp.prompts.input_ids, mdp.prompts.attention_mask, strict=True)
    ours = [ids[mask > 0].tolist() for ids, mask in kept]
    theirs = prompt_ids(tokenizer, trl_prompts(mdp), mdp.encoding["chat_template_kwargs"])
    for text, own, read in zip(mdp.prompts.texts, ours, theirs, strict=True):
        if own != read:
            raise ValueError(
                f"{name} must read each prompt as the task's tokens, {own} for {str(text)!r:.100}, got {read}; use a "
                "tokenizer that appends no token, and prompts without the spelling of a special token."
            )


def trl_prompts(mdp: TextMDP) -> list[Any]:
    """The prompts as a data set of TRL has them: texts, or messages."""
    return [messages_of(text) or str(text) for text in mdp.prompts.texts]


def prompt_ids(tokenizer: Any, prompts: list[Any], template: Mapping[str, Any]) -> list[list[int]]:
    """Token ids of prompts, by the calls of TRL's `_tokenize_prompts`."""
    if isinstance(prompts[0], str):
        encoded = tokenizer(text=prompts)
    else:
        encoded = tokenizer.apply_chat_template(
            conversation=prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **template
        )
    return [list(ids) for ids in encoded["input_ids"]]


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens at which TRL ends a completion."""
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *([] if own is None else [own] if isinstance(own, int) else own)}
