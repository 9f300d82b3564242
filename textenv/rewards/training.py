"""What reward functions learn of the training, and what they log: the arguments that TRL's trainers hand over.

`trainer_state` is the progress of the training, `log_metric(name, value)` logs a number about a batch, and
`log_extra(column, values)` one value for each completion of it. A function gets those that its signature takes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from textenv.arguments import shown
from textenv.rewards.scores import FLOAT32_MAX, as_number

TRAINER_ARGUMENTS = ("trainer_state", "log_extra", "log_metric")
SAMPLE_FIELDS = frozenset({"prompt", "completion", "score", "kl", "gold_score"})  # `samples.jsonl` has them already


@dataclass
class TrainerState:
    """The fields of `transformers.TrainerState`, which TRL hands over; those without a comment keep their defaults."""

    epoch: float = 0
    """Passes through the prompts so far, as many as the groups that were sampled would be."""
    global_step: int = 0
    """Updates so far."""
    max_steps: int = 0
    """Updates of the whole training, estimated from the tokens that an update has had on average; 0 outside one."""
    logging_steps: int = 500
    eval_steps: int = 500
    save_steps: int = 500
    train_batch_size: int | None = None
    """Completions per update, over all ranks."""
    num_train_epochs: int = 0
    num_input_tokens_seen: int = 0
    """Tokens sampled so far."""
    total_flos: float = 0
    log_history: list[dict[str, float]] = field(default_factory=list)
    best_metric: float | None = None
    best_global_step: int | None = None
    best_model_checkpoint: str | None = None
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    """Whether this is rank 0."""
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, object] | None = None
    stateful_callbacks: dict[str, object] = field(default_factory=dict)


def any_name(name: str) -> None:
    """Accepts every name."""


class TrainingContext:
    """What the reward functions of a task share with the agent that is trained on it.

    Attributes:
        state: the `trainer_state` of reward functions. The agent sets it before each update.
        check_name: raises a ValueError for a name of `log_metric` that one of the agent's own metrics has. The agent
            sets it; without an agent every name is free.
    """

    def __init__(self) -> None:
        self.state = TrainerState()
        self.check_name: Callable[[str], None] = any_name
        self._metrics: dict[str, tuple[float, int]] = {}

    def add_metrics(self, metrics: Sequence[tuple[str, float]]) -> None:
        """Adds the numbers that one call of a function has logged."""
        for name, value in metrics:
            total, count = self._metrics.get(name, (0.0, 0))
            self._metrics[name] = total + value, count + 1

    def take_metrics(self) -> dict[str, tuple[float, int]]:
        """Sum and count of the numbers logged since the last call, by name."""
        taken, self._metrics = self._metrics, {}
        return taken


class CallLog:
    """What one call of a reward function logs. It counts only if the call succeeds.

    Args:
        count: B, the number of completions of the call.
        check_name: see `TrainingContext`.

    Attributes:
        metrics: names and values, in order.
        columns: per name, B values.
    """

    def __init__(self, count: int, check_name: Callable[[str], None]) -> None:
        self.count, self.check_name = count, check_name
        self.metrics: list[tuple[str, float]] = []
        self.columns: dict[str, list[object]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Logs a number; an update's metric is the mean of those that were logged under its name.

        A nan, such as the mean of an empty list, is left out of that mean.

        Raises:
            ValueError: the name is no string, or one of the agent's metrics; or the value is no number, or infinite in
                float32.
        """
        number = as_number(value)
        if not isinstance(name, str) or not name or number is None:
            raise ValueError(f"log_metric takes a name and a number, got {shown(name)} and {shown(value)}.")
        self.check_name(name)
        if abs(number) > FLOAT32_MAX:
            raise ValueError(
                f"log_metric takes a number that is finite in float32, or nan, got {shown(value)} for {name!r}."
            )
        if not math.isnan(number):
            self.metrics.append((name, number))

    def log_extra(self, column: str, values: Sequence[object]) -> None:
        """Logs a column, one value per completion; further calls of the same name fill up a column begun before.

        Raises:
            ValueError: the name is no string, or one of `SAMPLE_FIELDS`; or there are more values than completions.
        """
        if not isinstance(column, str) or not column or isinstance(values, str | bytes):
            raise ValueError(f"log_extra takes a name and a list of values, got {shown(column)} and {shown(values)}.")
        if column in SAMPLE_FIELDS:
            raise ValueError(
                f"log_extra takes names other than {sorted(SAMPLE_FIELDS)}, which each sample has already, got "
                f"{column!r}; choose another."
            )
        logged = [*self.columns.get(column, ()), *values]
        if len(logged) > self.count:
            raise ValueError(
                f"log_extra takes one value per completion: {self.count}, got {len(logged)} for {column!r}."
            )
        self.columns[column] = logged

    def finish(self) -> None:
        """Checks the columns at the end of the call.

        Raises:
            ValueError: a column has fewer values than there are completions.
        """
        for column, values in self.columns.items():
            if len(values) != self.count:
                raise ValueError(
                    f"log_extra takes one value per completion: {self.count}, got {len(values)} for {column!r}."
                )


def trainer_arguments(function: Callable[..., object]) -> tuple[str, ...]:
    """Which of `TRAINER_ARGUMENTS` a function takes, by name or as one of any keywords."""
    try:
        # a torch module is called through a method that takes anything
        parameters = inspect.signature(getattr(function, "forward", function)).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return TRAINER_ARGUMENTS
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    return tuple(name for name in TRAINER_ARGUMENTS if name in named)
