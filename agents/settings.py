"""The settings that every agent has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from agents.ignored_settings import Values, only_with
from agents.policy import TransformerPolicy
from textenv import EnvLike


def _corrects(settings: Values) -> bool:
    return settings["sampler_correction"] is not None


@dataclass(eq=False)
class AgentSettings:
    """Policy, environment and settings; the checks are in agents/checks.py, the ranges in agents/ranges.py."""

    unused_settings: ClassVar[dict[str, str]] = {}
    """Of the settings below, those that an agent has no use for, each with the reason: another value is refused."""

    policy: TransformerPolicy
    """Samples tokens, and estimates V."""
    env: EnvLike
    """A text environment, single or batched; another library's single environment whose observation is a Dict of
    `input_ids` and `attention_mask`; None for an agent that only predicts."""
    learning_rate: float | Callable[[float], float] | None = None
    """Step size: a number, or a function of the share of total_timesteps that is done. None depends on what is trained:
    1e-5 for a pretrained model, 1e-4 for a LoRA adapter, 1e-3 for the small transformer of a toy."""
    n_episodes: int = 64
    """Completions per update, over all ranks."""
    num_generations: int = 1
    """Completions per prompt, a group; contiguous among the n_episodes."""
    gamma: float = 1.0
    """Discount; 1 for text, so that the score at the end counts in full after a completion of any length."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm; inf never does."""
    optimizer: str = "adam"
    """adam, adagrad, or module:object, which makes a torch optimizer from parameter groups."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """All step sizes over the share of total_timesteps that is done: constant, or falling to 0 linearly or as half a
    cosine."""
    lr_warmup: int = 0
    """The first updates, counted by num_updates, over which all step sizes rise linearly; 0: none."""
    micro_batch_size: int | None = None
    """Completions per forward and backward pass, to bound memory; gradients are accumulated. None is a minibatch."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the metric `objective/kl`. The KL in the rewards is always k1, the only one with the gradient of the
    KL, see `python -m experiments lecture --claims which_kl`."""
    kl_target: float | None = None
    """Target of the KL over whole completions, in nats, as measured by kl_estimator (k2 is biased). beta starts at the
    task's kl_coef and is adapted after each update; None keeps it fixed."""
    kl_horizon: int = only_with("kl_target", lambda settings: settings["kl_target"] is not None, 10_000)
    """With kl_target: completions over which beta changes by at most about a factor of e^0.2; >= n_episodes."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where beta times the KL is: in the rewards (k1, both terms), or in the loss; the rewards that an update uses are
    without it then."""
    kl_loss: Literal["k1", "k2", "k3", "k3_rho", "exact"] = only_with(
        "kl_in='loss'", lambda settings: settings["kl_in"] == "loss", "k3"
    )
    """With kl_in="loss": the term of each token, see agents/functional/kl_loss.py. exact needs the probabilities of all
    tokens, [B, T, V], of policy and reference."""
    sampler_correction: Literal["truncate", "mask"] | None = None
    """For a sampler whose log-probabilities are not the trainer's (`generate`, bfloat16, a server): weights of tokens,
    pi_trainer / pi_sampler, truncated at sampler_cap, or 0 above it. None trusts the sampler. See
    agents/preparation.py."""
    sampler_level: Literal["sequence", "token", "prefix"] = only_with("sampler_correction", _corrects, "sequence")
    """With sampler_correction: what the weight of a token is the product over, the completion, the token, or the tokens
    up to it."""
    sampler_cap: float = only_with("sampler_correction", _corrects, 2.0)
    """With sampler_correction: the largest weight."""
    seed: int | None = None
    """Seed of prompts, tokens and minibatches; None draws one from the operating system."""
