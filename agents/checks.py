"""Checks of an agent's settings, its environment, and the sharded copy of its policy."""

from __future__ import annotations

import math
from typing import Any

import torch

from agents.ignored_settings import check_ignored
from agents.policy import TransformerPolicy
from agents.ranges import RANGES, check_fields, check_range
from agents.sampling import check_spaces
from agents.training import Optimization, trainable_parameters, world_size
from textenv import TextMDP
from textenv.arguments import is_number
from textenv.lm import max_length


def check_settings(agent: Any) -> None:
    """Checks the settings of an `Agent`: types and ranges of all, and the rules of those that every agent has.

    Raises:
        TypeError: the policy is not a TransformerPolicy.
        ValueError: a setting is out of range, does not fit another, or would be ignored; or the agent has an
            environment, and a policy without weights to train.
    """
    if not isinstance(agent.policy, TransformerPolicy):
        raise TypeError(f"policy must be a TransformerPolicy (for_env, from_pretrained), got {agent.policy!r}.")
    if is_number(agent.max_grad_norm) and agent.max_grad_norm == math.inf:  # nothing is scaled down
        agent.max_grad_norm = RANGES["max_grad_norm"].high
    check_fields(agent)
    check_ignored(agent, agent.unused_settings)
    if agent.env is not None:
        check_trainable(agent.policy, agent.needs_values)
    if agent.n_episodes % agent.num_generations:
        raise ValueError(
            f"n_episodes must be a positive multiple of num_generations, got {agent.n_episodes} and "
            f"{agent.num_generations}."
        )
    for name, unit in (("n_episodes", agent.num_generations), ("batch_size", 1)):
        if (number := getattr(agent, name, None)) and number % (unit * world_size()):
            raise ValueError(
                f"{name} must be a multiple of {unit * world_size()}, so that each of {world_size()} ranks has "
                f"equally many whole groups, got {number}."
            )
    if agent.kl_target is not None:
        check_range("kl_horizon", agent.kl_horizon, agent.n_episodes)  # one batch changes beta by at most 20%
    if callable(agent.learning_rate) and agent.lr_schedule != "constant":
        raise ValueError(f"lr_schedule must be constant where learning_rate is a function, got {agent.lr_schedule!r}.")


def check_trainable(policy: TransformerPolicy, needs_values: bool) -> None:
    """Checks that each loss of an agent depends on weights that require a gradient.

    The policy loss and the value loss have one backward pass together, unless V has a trunk of its own.

    Args:
        policy: the agent's.
        needs_values: whether the agent trains V.

    Raises:
        ValueError: a loss depends on none.
    """
    model = trainable_parameters(policy.model)
    others = len(trainable_parameters(policy)) - len(model)  # the value head, and V's own trunk
    shared = needs_values and policy.critic is None
    if not model and not (shared and others):
        raise ValueError(
            "policy must have weights to train, got a model in which none requires a gradient; call "
            "policy.model.requires_grad_(True), or give an agent that only predicts no env."
        )
    if needs_values and not shared and not others:
        raise ValueError(
            "A separate critic must have weights to train, got one in which none requires a gradient; call "
            "policy.requires_grad_(True), or use an agent without V."
        )


def check_external(agent: Any) -> None:
    """Checks that an agent can be trained in another library's environment.

    Raises:
        ValueError: the spaces do not fit the policy, or a setting needs an MDP of textenv.
    """
    check_spaces(agent.env, agent.policy)
    if agent.num_generations > 1 or agent.kl_target is not None:
        raise ValueError(
            "num_generations > 1 and kl_target need an environment of textenv: one of another library chooses its own "
            f"start and has no reference; got num_generations={agent.num_generations} and kl_target={agent.kl_target}. "
            "Use num_generations=1 and kl_target=None (REINFORCE: baseline='mean')."
        )
    if agent.kl_in == "loss":
        raise ValueError(
            "kl_in='loss' needs an environment of textenv, got one of another library, which has no reference; "
            "use kl_in='reward'."
        )


def check_mdp(agent: Any, mdp: TextMDP) -> None:
    """Checks that policy and settings fit the environment's MDP.

    Raises:
        ValueError: see `check_fit`; or a kl_target without a beta to start from.
    """
    check_fit(agent.policy, mdp)
    if agent.kl_target is not None and mdp.kl_coef == 0:
        raise ValueError(
            "kl_target needs an environment with kl_coef > 0 to start from, got 0; "
            "set kl_coef in the environment, or kl_target=None."
        )


def check_fit(policy: TransformerPolicy, mdp: TextMDP) -> None:
    """Checks that a policy fits an MDP.

    Raises:
        ValueError: another vocabulary, or sequences too long for the policy.
    """
    if policy.vocab_size != mdp.vocab_size:
        raise ValueError(
            f"The vocabularies of policy and environment must be the same, got {policy.vocab_size} and "
            f"{mdp.vocab_size} tokens; use TransformerPolicy.for_env(env), or pass vocab_size= to from_pretrained."
        )
    context = max_length(policy.model)
    if context is not None and context < mdp.prompt_width + mdp.max_new_tokens:
        raise ValueError(
            f"The environment's sequences must fit the policy's context of {context} tokens, got up to "
            f"{mdp.prompt_width} + {mdp.max_new_tokens}; shorten the prompts or lower max_new_tokens."
        )


def check_copy(optimization: Optimization, learner: torch.nn.Module) -> None:
    """Checks that an agent can compute its losses with a copy of its policy.

    Args:
        optimization: the agent's.
        learner: the copy.

    Raises:
        ValueError: the policy itself was sharded, or the copy would start without the optimizer's state.
    """
    if not same_parameters(trainable_parameters(optimization.policy), optimization.trained):
        raise ValueError(
            "The policy must stay whole, because it samples, got one whose own parameters were sharded; "
            "shard a copy with `agents.training.shard`."
        )
    if optimization.started and not same_parameters(trainable_parameters(learner), optimization.trained):
        raise ValueError(
            "distribute() with a copy of the policy must be called before learning, got an agent with optimizer state; "
            "for a saved agent use load(..., wrap=)."
        )


def same_parameters(left: list[torch.nn.Parameter], right: list[torch.nn.Parameter]) -> bool:
    """Whether two lists hold the same objects, not only equal ones."""
    return [id(parameter) for parameter in left] == [id(parameter) for parameter in right]
