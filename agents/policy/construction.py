"""The policy that a training starts from: it is at the environment's reference."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from agents.policy.adapters import new_adapter
from agents.policy.imitation import imitate
from agents.policy.settings import check_separate_critic
from agents.ranges import check_integer
from textenv import EnvLike, TextMDP, get_mdp
from textenv.lm import forked_random_state
from textenv.references import CausalLMReference

LARGEST_SIZE = 65_536  # of the small GPT-2
Policy = TypeVar("Policy", bound=nn.Module)  # `TransformerPolicy`, which imports this file


def policy_at_reference(
    kind: type[Policy],
    env: EnvLike,
    temperature: float,
    separate_critic: bool,
    sizes: tuple[int, int, int],
    seed: int,
    lora: object,
) -> Policy:
    """Makes a policy of class `kind`; result, errors and arguments are those of `TransformerPolicy.for_env`.

    `sizes` are hidden_size, num_hidden_layers and num_attention_heads.
    """
    mdp = get_mdp(env)
    reference: Any = mdp.reference
    check_separate_critic(separate_critic)
    _check_sizes(*sizes)
    if lora is not None:
        model = new_adapter(reference, lora, seed)
    elif isinstance(reference, CausalLMReference):
        model = reference.copy_model().requires_grad_(True)
    else:
        return _imitation(kind, mdp, temperature, separate_critic, sizes, seed)
    return kind(model, vocab_size=mdp.vocab_size, temperature=temperature, separate_critic=separate_critic)


def _imitation(
    kind: type[Policy],
    mdp: TextMDP,
    temperature: float,
    separate_critic: bool,
    sizes: tuple[int, int, int],
    seed: int,
) -> Policy:
    """A small GPT-2 that imitates the reference."""
    with forked_random_state(torch.device("cpu"), seed):  # transformers draws initial weights from the global generator
        policy = kind(GPT2LMHeadModel(_small_gpt2(mdp, *sizes)), temperature=temperature)
    imitate(policy, mdp, seed=seed)
    if separate_critic:  # only now: the critic's trunk is a copy of the trained one
        policy.critic = copy.deepcopy(policy.trunk)
    return policy


def _check_sizes(hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> None:
    check_integer("hidden_size", hidden_size, 1, LARGEST_SIZE)
    check_integer("num_hidden_layers", num_hidden_layers, 1, LARGEST_SIZE)
    check_integer("num_attention_heads", num_attention_heads, 1, LARGEST_SIZE)
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads, got {hidden_size} and {num_attention_heads}."
        )


def _small_gpt2(mdp: TextMDP, hidden_size: int, num_hidden_layers: int, num_attention_heads: int) -> GPT2Config:
    """Learned positions: a table can count repetitions of one token, rotary positions cannot."""
    return GPT2Config(
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
