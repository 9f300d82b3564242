"""An agent in place of a loss: `verify` measures what its update really computes, not a copy of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from agents.agent import Agent
from agents.policy import FullEvaluation, TransformerPolicy
from agents.preparation import prepare
from agents.sampling import Rollout
from agents.training import Batch, Metrics
from agents.verification.loss import TokenGradient
from agents.verification.samples import Sample
from textenv import TextMDP

ONCE = {"n_epochs": 1, "batch_size": None, "target_kl": None, "micro_batch_size": None}  # one gradient per batch


@dataclass(frozen=True)
class AgentLoss:
    """An agent's class and settings, for `verify`; made by `agent_loss`."""

    kind: type[Agent]
    critic: Literal["exact", "zero"] = "exact"
    settings: dict[str, Any] = field(default_factory=dict)


def agent_loss(kind: type[Agent], critic: Literal["exact", "zero"] = "exact", **settings: Any) -> AgentLoss:
    """Returns what `verify` takes in place of a loss, to measure the first minibatch of an agent's update.

    Args:
        kind: the agent's class.
        critic: V(s) of an agent with a critic: that of the policy, or 0. REINFORCE's `credit="q"` gets the exact Q.
            With `kl_in="loss"` both are without the KL, as the rewards are.
        **settings: the agent's settings. `num_generations` is the argument of `verify`. `n_epochs`, `batch_size`,
            `target_kl` and `micro_batch_size` have no effect: the first minibatch is the whole batch.
    """
    if not isinstance(kind, type) or not issubclass(kind, Agent):
        raise TypeError(f"kind must be an agent's class, such as PPO, got {kind!r:.100}.")
    if critic not in ("exact", "zero"):
        raise ValueError(f"critic must be 'exact' or 'zero', got {critic!r}.")
    return AgentLoss(kind, critic, settings)


class AgentGradient:
    """The gradient that an agent's `train` computes by log pi(a_t|s_t); see `BatchGradient`.

    The agent's policy is not used: log pi is that of the sample.

    Args:
        loss: the agent.
        mdp: its task.
        num_generations, num_prompts: the groups of a batch.
    """

    def __init__(self, loss: AgentLoss, mdp: TextMDP, num_generations: int, num_prompts: int) -> None:
        self.critic = loss.critic
        self.sample: Sample | None = None
        self.leaf = self.all_leaf = torch.zeros(())

        class Measured(loss.kind):  # type: ignore[misc, name-defined]
            """The agent with log pi of the sample and the exact Q, without optimizer steps and without metrics."""

            def step(self) -> float:
                return 0.0

            def backward(self, batch: Batch, rows: Tensor | None = None) -> Metrics:
                if self.micro_batch_size is not None:
                    metrics: Metrics = super().backward(batch, rows)
                    return metrics
                for loss, _ in self.losses(batch if rows is None else batch[rows]):
                    loss.backward()
                return {"loss": 0.0}

            def evaluate_actions(self, rollout: Rollout, values: bool = False) -> FullEvaluation:
                log_probs = outer.leaf[rollout.place]  # type: ignore[attr-defined]
                known = torch.zeros_like(log_probs) if values else None
                return FullEvaluation(log_probs, known, outer.all_leaf[rollout.place])  # type: ignore[attr-defined]

            def evaluate_reference(self, rollout: Rollout) -> Tensor:
                assert outer.sample is not None
                return outer.sample.ref_all_log_probs[rollout.place]  # type: ignore[attr-defined]

            def q_values(self, rollout: Rollout) -> Tensor:
                assert outer.sample is not None
                sample, without = outer.sample, self.kl_in == "loss"
                known = sample.q_values_without_kl if without else sample.q_values
                return known[rollout.place]  # type: ignore[attr-defined]

        outer, names = self, {each.name for each in fields(loss.kind)}
        settings = {"seed": 0, "n_episodes": num_generations * num_prompts} | loss.settings
        settings |= {"num_generations": num_generations} | {name: ONCE[name] for name in ONCE if name in names}
        self.agent = Measured(_unused_policy(mdp), mdp, **settings)

    @property
    def extra(self) -> list[str]:
        """See `BatchGradient`."""
        exact = self.agent.kl_in == "loss" and self.agent.kl_loss == "exact"
        return ["all_log_probs", "ref_all_log_probs"] if exact else []

    def __call__(self, sample: Sample) -> TokenGradient:
        """See `BatchGradient`."""
        self.sample, self.leaf = sample, sample.log_probs.detach().requires_grad_()
        self.all_leaf = sample.all_log_probs.detach().requires_grad_()
        values = sample.values_without_kl if self.agent.kl_in == "loss" else sample.values
        rollout = replace(sample.rollout, values=values if self.critic == "exact" else torch.zeros_like(values))
        self.agent.step_guard.begin()
        self.agent.train(prepare(self.agent, rollout)[0])
        gradient = torch.zeros_like(self.leaf) if self.leaf.grad is None else self.leaf.grad
        return TokenGradient(torch.where(rollout.mask, gradient, 0.0), self.all_leaf.grad)

    def in_micro_batches(self, sample: Sample, size: int) -> TokenGradient:
        """See `BatchGradient`: with the agent's own micro-batches."""
        self.agent.micro_batch_size = size
        try:
            return self(sample)
        finally:
            self.agent.micro_batch_size = None


def _unused_policy(mdp: TextMDP) -> TransformerPolicy:
    """The smallest policy that an agent accepts."""
    config = GPT2Config(
        vocab_size=mdp.vocab_size,
        n_positions=mdp.prompt_width + mdp.max_new_tokens,
        n_embd=4,
        n_layer=1,
        n_head=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        return TransformerPolicy(GPT2LMHeadModel(config))
