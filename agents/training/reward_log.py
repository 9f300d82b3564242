"""What reward functions learn of the training, and what they log about it (`textenv.rewards.training`)."""

from __future__ import annotations

import math
from typing import Any

from agents.training.ranks import gather_objects, rank
from agents.training.reduction import Metrics
from textenv import TextMDP
from textenv.rewards import TrainerState

# What the names of our metrics begin with, and the other names in a row of metrics
OURS = ("objective/", "policy/", "val/", "loss/", "groups/", "completions/", "train/", "eval/", "warnings/")
OTHERS = {"num_timesteps", "num_updates", "seconds", "tokens_per_second"}
OTHERS |= {"grad_norm", "num_minibatches", "num_skipped_steps"}


def trainer_state(agent: Any, mdp: TextMDP, total_timesteps: int | None) -> TrainerState:
    """The `trainer_state` of reward functions before an update.

    Updates differ in their tokens, so `max_steps` is an estimate: at first as if all completions had `max_new_tokens`.
    """
    updates, tokens = (agent.num_updates, agent.num_timesteps) if agent.num_updates else (1, 0)
    per_update = tokens / updates or agent.n_episodes * mdp.max_new_tokens
    prompts = agent.n_episodes / agent.num_generations  # of an update
    max_steps = math.ceil((total_timesteps or 0) / per_update)
    return TrainerState(
        epoch=agent.num_updates * prompts / len(mdp.prompts.texts),
        global_step=agent.num_updates,
        max_steps=max_steps,
        num_train_epochs=math.ceil(max_steps * prompts / len(mdp.prompts.texts)),
        num_input_tokens_seen=agent.num_timesteps,
        train_batch_size=agent.n_episodes,
        is_world_process_zero=rank() == 0,
    )


def check_metric_name(name: str) -> None:
    """Raises a ValueError if a name of `log_metric` is, or may become, that of a metric of ours."""
    if name in OTHERS or name.startswith(OURS):
        raise ValueError(
            f"log_metric's name {name!r} is one of the agents' metrics, as all that begin with {', '.join(OURS)} are; "
            "a reward function must use another."
        )


def reward_metrics(mdp: TextMDP) -> Metrics:
    """The means of what reward functions have logged (`log_metric`) since the update began, over all ranks."""
    sums: dict[str, tuple[float, int]] = {}
    for logged in gather_objects(mdp.training.take_metrics()):
        for name, (total, count) in logged.items():
            before = sums.get(name, (0.0, 0))
            sums[name] = before[0] + total, before[1] + count
    return {name: total / count for name, (total, count) in sorted(sums.items())}
