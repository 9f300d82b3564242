"""Registers tasks with Gymnasium."""

from __future__ import annotations

import gymnasium as gym


def register(env_id: str, task: str, **defaults: object) -> None:
    """Makes a task an environment of `gym.make`, `gym.make_vec` and `python -m experiments`.

    Args:
        env_id: its id with Gymnasium, such as "own/Polite-v0".
        task: "module:function". The function returns a `TextMDP`; its arguments are those of `gym.make`.
        **defaults: arguments of the function that differ from its own defaults. `gym.make` can set them, flags cannot.

    Raises:
        ValueError: `task` is not of the form "module:function".
        gymnasium.error.Error: Gymnasium does not take the id.
    """
    module, _, function = task.partition(":") if isinstance(task, str) else ("", "", "")
    if not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise ValueError(f"task must be 'module:function', which returns a TextMDP, got {task!r}.")
    gym.register(
        env_id,
        entry_point="textenv.env:make",
        vector_entry_point="textenv.vector:make_vec",
        kwargs={"task": task, **defaults},
        disable_env_checker=True,  # Gymnasium's passive one: after a refused first reset it fails at every later step
    )
