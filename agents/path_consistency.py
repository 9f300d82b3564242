"""PathConsistency: off-policy, from the equation that holds at pi* for every single completion.

The optimum of J is pi*(y|x) = pi_ref(y|x) exp(r(x, y) / beta) / Z(x), r the score with its shaping. Solved for Z(x):

    beta log Z(x) = r(x, y) - beta (log pi*(y|x) - log pi_ref(y|x))            for every completion y

    R_i  = r(x, y_i) - beta (log pi(y_i|x) - log pi_ref(y_i|x))                of K completions of a prompt
    loss = 1 / (2 beta)  1/(K-1) sum_i (R_i - mean(R_1 .. R_K))^2              their variance

At pi* the R_i are equal, and the loss is zero for any completions. Where it is zero for all completions they are
equal, so pi ~ pi_ref exp(r / beta), and pi = pi*. This holds whoever sampled them: no importance weight is needed, and
older completions are used again, from a replay.

What it changes in RLOO: the KL in R_i is that of the policy that is trained, and not of pi_old. With b_i the mean of
the other R, R_i - b_i = K/(K-1) (R_i - mean), so

    grad loss = 1 / (beta (K-1)) sum_i (R_i - mean) grad R_i = - 1/K sum_i (R_i - b_i) grad log pi(y_i|x)

In expectation over y_i ~ pi that is - grad J, as in RLOO. Off policy it is no longer the gradient of J; pi* stays the
only policy at which it is zero for all completions.

Path consistency is of Nachum et al. 2017 (arXiv:1702.08892). With a learned log Z(x) it is trajectory balance (relative
to pi_ref: Deleu et al. 2025, arXiv:2509.01632; for language models Bartoldson et al. 2025, arXiv:2503.18929); the
variance, which needs none, is VarGrad (Richter et al. 2020, arXiv:2010.10436).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from agents.agent import Agent
from agents.functional import in_groups, path_consistency_loss, policy_diagnostics
from agents.ignored_settings import only_with
from agents.ranges import RANGES, check_range
from agents.sampling import Rollout
from agents.training import Batch, Info, Metrics, Replay, shuffles, split_rows, take_steps, world_size


@dataclass(eq=False)
class PathConsistency(Agent):
    """Path consistency in groups of completions, with a replay, see this file's docstring."""

    num_generations: int = 16
    """K, completions per prompt, a group; contiguous among the n_episodes; at least 2."""
    n_epochs: int = 8
    """Passes of an update: one over the new completions, each other one over a rollout drawn from the replay."""
    batch_size: int | None = None
    """Completions per minibatch, in whole groups; None is a whole rollout."""
    replay_size: int = only_with("n_epochs > 1", lambda settings: settings["n_epochs"] != 1, 8)
    """The last rollouts, that of the update among them, from which the passes after the first are drawn. They are saved
    with the agent; `replay.rollouts.clear()` forgets them, as a task with another reward needs it."""

    needs_values: ClassVar[bool] = False
    unused_settings: ClassVar[dict[str, str]] = {
        "gamma": "pi* is that of the undiscounted return",
        **dict.fromkeys(("kl_in", "kl_loss"), "its loss has the KL in the return"),
        **dict.fromkeys(
            ("sampler_correction", "sampler_level", "sampler_cap"),
            "its loss has no importance weights, and any sampler may sample",
        ),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("num_generations", self.num_generations, 2, RANGES["num_generations"].high)
        for name, ranks in (("batch_size", world_size()), ("micro_batch_size", 1)):
            unit, number = self.num_generations * ranks, getattr(self, name)
            if number is not None and number % unit:
                raise ValueError(
                    f"{name} must be a multiple of {unit} for PathConsistency, so that no group of "
                    f"num_generations={self.num_generations} is split (on any of the ranks), got {number}."
                )
        if self.mdp is not None and self.mdp.kl_coef == 0:
            raise ValueError(
                "PathConsistency needs an environment with kl_coef > 0, got 0: without a KL there is no "
                "pi* ~ pi_ref exp(r / beta); set kl_coef in the environment, or use RLOO."
            )
        self.replay = Replay(self.replay_size, self.num_generations)

    def train(self, rollout: Rollout) -> Metrics:
        """Takes a pass over the completions, and `n_epochs` - 1 over rollouts of the replay, in minibatches."""
        rollout = rollout.skip(~self.trained_rows(rollout))
        kl = self.current_kl_coef * (rollout.log_probs - rollout.ref_log_probs)
        rollout = replace(rollout, rewards=torch.where(rollout.mask, rollout.rewards + kl, 0.0))  # r_t without the KL
        return take_steps(self, self.passes(rollout))

    def passes(self, rollout: Rollout) -> Iterator[tuple[Batch, Tensor]]:
        """Yields the minibatches of an update; where a step could not be taken, of the new completions alone.

        They leave the replay then. (Steps on older ones would hide from the step guard that training has diverged.)
        """
        self.replay.append(rollout)
        drawn = self.replay.draw(self.n_epochs - 1, self.generator)
        counts = [len(each) for each in (rollout, *drawn)]
        first, *orders = shuffles(counts, self.generator, self.num_generations)
        yield from self.minibatches(rollout, first)
        if self.step_guard.skipped:
            self.replay.rollouts.pop()
            return
        for each, order in zip(drawn, orders, strict=True):
            yield from self.minibatches(each, order)

    def minibatches(self, rollout: Rollout, order: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """Yields each minibatch of a rollout, whole groups in a random order, as a batch and rows of it."""
        batch = Batch(rollout, rollout.rewards, rollout.rewards)  # the weights of grad log pi depend on pi: `losses`
        for rows in split_rows(order, self.batch_size):
            yield batch, rows

    def losses(self, batch: Batch) -> Iterator[tuple[Tensor, Info]]:
        """Yields the loss of some groups, and metrics."""
        rollout, log_probs = batch.rollout, self.evaluate_actions(batch.rollout).log_probs
        arguments = (log_probs, rollout.ref_log_probs, rollout.rewards, rollout.mask)
        loss = path_consistency_loss(*arguments, self.current_kl_coef, self.num_generations)
        yield loss, policy_diagnostics(loss, log_probs, rollout.log_probs, rollout.mask)

    def trained_rows(self, rollout: Rollout) -> Tensor:
        """The completions that are not skipped, in groups with at least two of them."""
        return in_groups(rollout.valid, self.num_generations)

    def own_state(self) -> dict[str, Tensor]:
        """The replay."""
        return self.replay.tensors()

    def restore_own_state(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Restores the replay; with other `num_generations` it begins empty."""
        self.replay.restore(tensors, path, self.policy.device, self.policy.vocab_size)
