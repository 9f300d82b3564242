"""What a trainer of TRL calls: the task's reward as one function of TRL's signature, and a report after each update.

TRL samples `n_episodes` completions, scores them with `Updates.score`, and takes `n_epochs` optimizer steps on them.
Then it logs, and `Updates.on_log` calls back.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback

from agents.training import SCHEDULES, Metrics
from experiments.library_agent import Callback, LibraryAgent
from textenv import TextMDP
from textenv.rewards import scores_or_nan


class Updates(TrainerCallback):
    """Scores and counts the tokens of an agent of TRL, and ends its updates.

    Args:
        agent: the agent.
        callback: see `LibraryAgent.learn`.
        goal: the number of tokens at which training ends.
        bar: a progress bar of tokens.
        begun: called when a trainer has set up the model.
    """

    def __init__(self, agent: Any, callback: Callback | None, goal: int, bar: Any, begun: Callable[[], None]) -> None:
        self.begun = begun
        self.agent, self.callback, self.goal, self.bar = agent, callback, goal, bar
        self.tokens = 0  # of the last batch
        self.sampled: Metrics = {}  # about the last batch

    def score(
        self, prompts: Any, completions: Any, completion_ids: list[list[int]], index: list[int], **_: Any
    ) -> list[float | None]:
        """The score of each completion, and its shaping; None for one that is skipped. `index` is that of its prompt.

        The token ids are scored as they were sampled, by the functions and weights that score an evaluation.
        """
        mdp: TextMDP = self.agent.mdp
        length = np.array([len(ids) for ids in completion_ids])
        tokens = np.zeros((len(length), mdp.max_new_tokens), dtype=np.int64)
        mask = np.arange(mdp.max_new_tokens) < length[:, None]
        tokens[mask] = np.concatenate(completion_ids)
        prompt = np.array(index)
        finished = mdp.finished(prompt, mdp.prompt_texts[prompt], tokens, length)
        scores, gold_scores = scores_or_nan(mdp.reward, mdp.gold_reward, finished)
        self.tokens = int(length.sum())
        self.agent.count(self.tokens)
        cut = ~mdp.is_eos[tokens[np.arange(len(length)), length - 1]]
        self.sampled = sampled_metrics(scores, self.agent.num_generations)
        self.sampled["completions/mean_length"] = float(length.mean())
        self.sampled["completions/clipped_ratio"] = float(cut.mean())
        if gold_scores is not None:
            self.sampled["objective/gold_scores"] = float(np.nanmean(gold_scores))
        returns = scores + sum(terms.sum(axis=1) for terms in shaping(mdp, prompt, tokens, mask))
        return [None if math.isnan(value) else float(value) for value in returns]

    def rate_factor(self, steps: int) -> float:
        """The factor of the step size after some optimizer steps: TRL's schedule, over tokens instead of steps.

        The tokens of a batch count one after the other, over the steps that are taken on it.
        """
        done = steps % self.agent.n_epochs
        open_tokens = self.tokens * (1 - done / self.agent.n_epochs) if done else 0.0
        return SCHEDULES[self.agent.lr_schedule](min(1.0, (self.agent.num_timesteps - open_tokens) / self.goal))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """After the trainer's changes of the model's configs: what is saved during training is without them."""
        self.begun()
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> Any:
        """Ends an update, after its last optimizer step; then a trainer logs."""
        if logs is None or "loss" not in logs:  # the summary at the end
            return control
        agent: LibraryAgent = self.agent
        agent.policy.eval()  # the trainer sets training mode before each step
        agent.check_finite()
        own = {f"train/{name}": float(value) for name, value in logs.items() if isinstance(value, int | float)}
        metrics = own | self.sampled
        if "train/entropy" in own:  # the mean over tokens
            metrics["objective/entropy"] = own["train/entropy"] * self.sampled["completions/mean_length"]
        self.bar.update(self.tokens)
        goes_on = agent.end_update(metrics, finite(metrics), self.callback)
        control.should_training_stop |= not goes_on or agent.num_timesteps >= self.goal
        return control


def sampled_metrics(scores: NDArray[np.float64], num_generations: int) -> Metrics:
    """The metrics of scores, nan for a completion that is skipped, by the names of our agents' metrics."""
    known = scores[~np.isnan(scores)]
    if not len(known):
        return {}
    groups = scores.reshape(-1, num_generations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a group whose completions are all skipped
        equal = ~(np.nanmax(groups, axis=1) > np.nanmin(groups, axis=1))
    return {
        "objective/scores": float(known.mean()),
        "groups/equal_scores_ratio": float(equal.mean()),
    }


def shaping(
    mdp: TextMDP, prompt: NDArray[np.int64], tokens: NDArray[np.int64], mask: NDArray[np.bool_]
) -> Sequence[NDArray[np.float64]]:
    """The value of each shaping term at every token, [B, T]; none where the task has no shaping."""
    if not mdp.shaping:
        return []
    state = mdp.empty_state(len(prompt))
    mdp.reset_rows(state, np.arange(len(prompt)), prompt)
    return list(mdp.shaping_terms(mdp.transitions(state, tokens, mask)).values())


def finite(metrics: Metrics) -> Metrics:
    """The metrics that are finite."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
