"""GRPO: the other completions of the prompt replace the critic (Shao et al. 2024, arXiv:2402.03300).

    A_t   = (G_i - mean(G_1 .. G_K)) / std(G_1 .. G_K)              for every token of completion i of K
    L     = E[ sum_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps_high) A_t) ]

What it changes in PPO: there is no critic. The advantage is relative to the group, and the same for all tokens of a
completion. With eps_high > eps ("clip-higher", Yu et al. 2025, arXiv:2503.14476) the probability of unlikely tokens can
rise further.

Unlike Shao et al., by default: the KL is in the reward and not in the loss (`python -m experiments lecture --claims
which_kl` measures why), and the loss is a sum over a completion's tokens and not a mean, loss="dr_grpo". The mean,
loss="grpo", favours short correct and long wrong completions (Liu et al. 2025, arXiv:2503.20783). Liu et al. also argue
against dividing by the standard deviation: `scale_rewards=False`. `loss` has the successors too, in one table of
agents/functional/group_losses.py. GRPO as Shao et al. have it: loss="grpo", kl_in="loss", kl_loss="k3".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from agents.functional import (
    GROUP_LOSSES,
    completion_weights,
    group_loss,
    group_relative,
    policy_diagnostics,
    surrogate_diagnostics,
    widen,
)
from agents.group_agent import GroupAgent
from agents.ignored_settings import only_with
from agents.kl_in_loss import add_kl
from agents.training import Batch, Info, all_reduce_sum


@dataclass(eq=False)
class GRPO(GroupAgent):
    """Group-relative policy optimisation, see this file's docstring."""

    num_generations: int = 8
    """K, completions per prompt, a group; contiguous among the n_episodes; at least 2."""
    scale_rewards: bool = True
    """Divide advantages by the group's standard deviation."""
    clip_range_high: float | None = only_with(
        "clip_range", lambda settings: settings["clip_range"] is not None or settings["loss"] == "cispo", 0.28
    )
    """eps_high, for rho > 1; None is eps."""
    loss: Literal["dr_grpo", "grpo", "dapo", "gspo", "cispo", "sapo"] = "dr_grpo"
    """The surrogate of a token and the weight of a completion, see agents/functional/group_losses.py. gspo needs much
    smaller clip ranges, 3e-4 and 4e-4; cispo clips rho at 1 + eps_high alone, sapo nowhere: metrics of the clip are
    those of PPO's for them too. Other divisors than dr_grpo's change the size of the loss, and so of the gradient."""
    importance: Literal["token", "sequence", "prefix"] = "token"
    """What rho_t is the product over, see `importance_log_ratio`; gspo has its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if GROUP_LOSSES[self.loss].importance is not None and self.importance != "token":
            raise ValueError(
                f"importance must be 'token' with loss={self.loss!r}, which has its own weights, got "
                f"{self.importance!r}."
            )

    def advantages(self, returns: Tensor, valid: Tensor) -> Tensor:
        """(G_i - mean) / std of the group; without `scale_rewards` G_i - mean."""
        return group_relative(returns, self.num_generations, self.scale_rewards, valid=valid)

    def completion_weights(self, mask: Tensor) -> Tensor:
        """c_i of `loss`, with the mean length over all ranks."""
        tokens, completions = all_reduce_sum(mask.sum()), all_reduce_sum(mask.any(dim=1).sum())
        return completion_weights(self.loss, mask, widen(tokens.clamp(min=1)) / completions.clamp(min=1))

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the loss of some completions, and metrics."""
        rollout, evaluation, weights = batch.rollout, self.evaluate_actions(batch.rollout), batch.completion_weights
        log_probs, mask, importance = evaluation.log_probs, rollout.mask, GROUP_LOSSES[self.loss].importance
        clip = (self.clip_range, self.clip_range_high, importance or self.importance)
        arguments = (log_probs, rollout.log_probs, batch.advantages, mask, *clip)
        loss, info = group_loss(self.loss, *arguments, weights), surrogate_diagnostics(*arguments)
        info |= policy_diagnostics(loss, log_probs, rollout.log_probs, mask)
        yield add_kl(self, loss, info, rollout, evaluation, weights)
