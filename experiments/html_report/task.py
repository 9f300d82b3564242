"""Which task a run has, by its flags: a page shows runs of one task."""

from __future__ import annotations

from collections.abc import Sequence

from agents.files import JsonObject
from experiments.errors import FlagError
from experiments.task_arguments import default_arguments

# flags that say what the task is, besides its arguments
TASK_FLAGS = (
    *("env", "model", "prompts", "eval_prompts", "held_out", "reward", "reward_weights", "gold_reward"),
    *("missing_eos_penalty", "special_tokens_in_prompts", "chat_template_kwargs"),
)
ARGUMENT_FLAGS = ("max_new_tokens", "kl_coef")  # of the task's arguments, those that have a flag of their own


def arguments_of(flags: JsonObject) -> JsonObject:
    """The arguments of a run's task: those that were given, by either flag, and the defaults of textenv's own tasks."""
    given = {name: flags[name] for name in ARGUMENT_FLAGS if flags.get(name) is not None}
    return {**default_arguments(str(flags.get("env"))), **(flags.get("env_args") or {}), **given}


def check_one_task(all_flags: Sequence[JsonObject]) -> None:
    """Raises a FlagError unless all runs have the same task; the message names the flag that differs.

    A flag that was left out is the same as its default. Arguments that only some runs have are compared as well.
    """
    first, *others = [_task(flags) for flags in all_flags]
    for other in others:
        for name in [*first, *(name for name in other if name not in first)]:
            own, theirs = first.get(name), other.get(name)
            if own != theirs:
                is_flag = name in TASK_FLAGS or name in ARGUMENT_FLAGS
                flag = f"--{name.replace('_', '-')}" if is_flag else f"--env-args {name}"
                raise FlagError(f"a report is of one task, got runs with {flag} {own!r} and {theirs!r}.")


def _task(flags: JsonObject) -> JsonObject:
    task = {name: flags.get(name) or None for name in TASK_FLAGS}  # 0, False and None are the same: off
    if task["reward_weights"] is None and isinstance(task["reward"], list):
        task["reward_weights"] = [1.0] * len(task["reward"])
    return {**task, **arguments_of(flags)}
