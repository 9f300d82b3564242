"""What happens after each update of Stable-Baselines3: a check that it has not diverged, metrics, warnings, callback.

Stable-Baselines3 takes any step. `StepFilter` leaves out those whose gradient is not finite, through a hook of the
optimizer. A loss that is infinite shows afterwards, in the metrics; its gradient was scaled to zero, or was finite.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from agents import Diverged
from agents.training import MOST_SKIPPED, Metrics, abridge, advice, check_metric_name, find_losses
from experiments.library_agent import Callback
from textenv import get_mdp


class StopLearning(Exception):
    """The callback returned False.

    Stable-Baselines3's own way to stop would first sample another token in each environment, and later continue without
    that token.
    """


class StepFilter:
    """Leaves out optimizer steps whose gradient is not finite: without gradients Adam changes nothing.

    Attributes:
        skipped: steps left out since it was set to 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.skipped = 0
        optimizer.register_step_pre_hook(self)

    def __call__(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and not bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
            self.skipped += 1
            optimizer.zero_grad()


class EndedCompletion(NamedTuple):
    """A completion that ended during an update."""

    prompt: Any
    completion: Any
    score: float
    finish_reason: str
    gold_score: float | None


class UpdateCallback(BaseCallback):
    """Calls back after each update: before the next tokens are sampled, and at the end.

    Raises:
        Diverged: the policy is not finite, or loss or gradient were not in several updates in a row.
        StopLearning: `callback` returned False.
    """

    def __init__(self, agent: Any, callback: Callback | None, bar: Any) -> None:
        super().__init__()
        self.agent, self.callback, self.bar = agent, callback, bar
        self.reported = self.bad_updates = 0
        self.finished: list[EndedCompletion] = []

    def _on_training_start(self) -> None:
        self.reported = self.num_timesteps
        get_mdp(self.agent.env).training.check_name = check_metric_name

    def _on_step(self) -> bool:
        self.finished += [
            EndedCompletion(*(info.get(name) for name in EndedCompletion._fields))
            for info in self.locals["infos"]
            if "score" in info
        ]
        return True

    def _on_rollout_start(self) -> None:
        self._report()

    def _on_training_end(self) -> None:
        self._report()

    def _report(self) -> None:
        if self.num_timesteps == self.reported:  # no token was sampled yet
            return
        metrics = {name: float(value) for name, value in self.logger.name_to_value.items()}  # its own, train/...
        self._check(metrics)
        if self.finished:
            metrics["objective/scores"] = float(np.mean([each.score for each in self.finished]))
        metrics["train/skipped_steps"] = float(self.agent.step_filter.skipped)
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        tokens, finished = self.num_timesteps - self.reported, self.finished
        self.bar.update(tokens)
        self.reported, self.finished, self.agent.step_filter.skipped = self.num_timesteps, [], 0
        if not self.agent.end_update(metrics, common_metrics(metrics, finished, tokens), self.callback):
            raise StopLearning

    def _check(self, metrics: Metrics) -> None:
        """Raises `Diverged` if the policy cannot sample any more, or has not been trained for several updates."""
        agent = self.agent
        agent.check_finite()
        found = find_losses(metrics)
        bad = agent.step_filter.skipped > 0 or not all(map(math.isfinite, found.values()))
        self.bad_updates = self.bad_updates + 1 if bad else 0
        if self.bad_updates >= MOST_SKIPPED:
            largest = max(self.finished, key=lambda each: abs(each.score), default=None)
            score = 0.0 if largest is None else abs(largest.score)
            suspect = "" if largest is None else f", of {abridge(largest.prompt)} -> {abridge(largest.completion)}"
            raise Diverged(
                f"Training has diverged in update {agent.num_updates + 1}: loss or gradient of {self.bad_updates} "
                f"updates in a row are not finite ({', '.join(f'{name} {value:.3g}' for name, value in found.items())}"
                f"). Largest |score|: {score:.3g}{suspect}. {advice(agent, score)}"
            )


def common_metrics(metrics: Metrics, finished: list[EndedCompletion], tokens: int) -> Metrics:
    """Metrics of Stable-Baselines3 and of finished completions by the names of our agents' metrics."""
    row = metrics | {"num_skipped_steps": metrics["train/skipped_steps"]}
    if "train/explained_variance" in metrics:
        row["val/explained_variance"] = metrics["train/explained_variance"]
    if not finished:
        return row
    scores = np.array([each.score for each in finished])
    row["completions/clipped_ratio"] = float(np.mean([each.finish_reason != "stop" for each in finished]))
    if "train/entropy_loss" in metrics:  # minus the mean entropy of a token
        row["objective/entropy"] = -metrics["train/entropy_loss"] * tokens / len(finished)
    if len(scores) > 1:
        row["objective/rlhf_reward_stderr"] = float(scores.std(ddof=1)) / math.sqrt(len(scores))
        row["groups/equal_scores_ratio"] = float(scores.min() == scores.max())
    if finished[0].gold_score is not None:
        row["objective/gold_scores"] = float(np.mean([each.gold_score for each in finished]))
    return row
