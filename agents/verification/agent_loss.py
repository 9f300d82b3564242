"""An agent in place of a loss: `verify` measures what its update really computes, not a copy of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from agents.agent import Agent
from agents.policy import ActionEvaluation, TransformerPolicy
from agents.sampling import Rollout
from agents.verification.enumeration import Enumeration
from agents.verification.loss import rollout_of

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
        **settings: the agent's settings; `num_generations` is the argument of `verify`.
    """
    if critic not in ("exact", "zero"):
        raise ValueError(f"critic must be 'exact' or 'zero', got {critic!r}.")
    return AgentLoss(kind, critic, settings)


class AgentGradient:
    """The gradient that an agent's `train` computes by the table log pi(a|s); see `BatchGradient`.

    The agent's policy is not used: log pi is looked up in the table.
    """

    def __init__(
        self,
        loss: AgentLoss,
        completions: Enumeration,
        values: Tensor,
        num_generations: int,
        num_prompts: int,
        sampled: Tensor | None = None,
    ) -> None:
        tree = completions.tree
        self.completions, self.table = completions, torch.zeros(())
        zero = torch.zeros(completions.mask.shape, dtype=torch.float64)
        known = completions.look_up(values) if loss.critic == "exact" else zero
        self.rollout = replace(rollout_of(completions, sampled), values=known)
        keys = map(_key, self.rollout.input_ids, self.rollout.attention_mask)
        self.row_of = {key: row for row, key in enumerate(keys)}
        length = tree.mdp.prompt_width + tree.mdp.max_new_tokens
        config = GPT2Config(
            vocab_size=tree.mdp.vocab_size,
            n_positions=length,
            n_embd=4,
            n_layer=1,
            n_head=1,
            bos_token_id=None,
            eos_token_id=None,
        )
        q_values = completions.look_up(completions.evaluation.q_values)

        class Measured(loss.kind):  # type: ignore[misc, name-defined]
            """The agent on the table, without optimizer steps, and with the exact Q."""

            def step(self) -> float:
                return 0.0

            def evaluate_actions(self, rollout: Rollout, values: bool = False) -> ActionEvaluation:
                log_probs = outer.look_up(rollout)
                return ActionEvaluation(log_probs, torch.zeros_like(log_probs) if values else None)

            def q_values(self, rollout: Rollout) -> Tensor:
                return q_values[outer.rows_of(rollout)]

        outer, names = self, {each.name for each in fields(loss.kind)}
        settings = {"seed": 0, "n_episodes": num_generations * num_prompts} | loss.settings
        settings |= {"num_generations": num_generations} | {name: ONCE[name] for name in ONCE if name in names}
        with torch.random.fork_rng(devices=[]):
            policy = TransformerPolicy(GPT2LMHeadModel(config))
        self.agent = Measured(policy, tree.mdp, **settings)

    def __call__(self, rows: Tensor, log_probs: Tensor) -> Tensor:
        """See `BatchGradient`."""
        self.table = log_probs.clone().requires_grad_()
        rollout = self.rollout[rows]
        self.agent.step_guard.begin(rollout)
        self.agent.train(rollout)
        gradient = self.table.grad
        return torch.zeros_like(log_probs) if gradient is None else gradient

    def look_up(self, rollout: Rollout) -> Tensor:
        """log pi(a_t|s_t), [B, T], with gradient; arbitrary after the ends of completions, as a model's is."""
        rows = self.rows_of(rollout)
        return self.table[self.completions.states[rows], self.completions.actions[rows]]

    def rows_of(self, rollout: Rollout) -> Tensor:
        """Which of all completions these are, int64 [B]."""
        sequences = zip(rollout.input_ids, rollout.attention_mask, strict=True)
        return torch.tensor([self.row_of[_key(*each)] for each in sequences])


def _key(input_ids: Tensor, attention_mask: Tensor) -> tuple[int, ...]:
    return (*input_ids.tolist(), *attention_mask.tolist())
