"""Which arguments of a task --env-args may set: numbers and texts of the function that makes the task.

The arguments of a saved run pass here too. The registration of an environment has others, such as the function that
makes the task: whoever sets these runs any function.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from experiments.errors import FlagError
from experiments.named_code import import_registrations
from textenv import TextMDP

Kinds = tuple[object, ...]  # the types int, float and str, and the allowed values of a Literal

RESERVED = {"id", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "max_episode_steps"}
RESERVED |= {"task", "policy", "render_mode", "autoreset_mode", "disable_env_checker", "env_creator", "entry_point"}


def is_own_task(env: str) -> bool:
    """Whether an environment is one of textenv's own tasks: making it imports nothing else."""
    spec = gym.registry.get(env)
    task = None if spec is None else spec.kwargs.get("task")
    return env.startswith("textenv/") and isinstance(task, str) and task.startswith("textenv.tasks.")


def check_task_arguments(env: str, arguments: Mapping[str, object]) -> None:
    """Checks names and types of --env-args.

    Raises:
        FlagError: the task has no such argument, or the value has another type. The message has all that it takes.
        gymnasium.error.Error: there is no such environment.
    """
    if not arguments:
        return
    known, reserved, any_name = _known_arguments(env)
    for name, value in arguments.items():
        kinds = known.get(name, (int, float, str) if any_name and name not in reserved else ())
        if not kinds:
            raise FlagError(f"--env-args {name}: {env} takes {', '.join(known) or 'no arguments'}.")
        if not any(value == kind if not isinstance(kind, type) else _is(value, kind) for kind in kinds):
            expected = " or ".join(kind.__name__ if isinstance(kind, type) else repr(kind) for kind in kinds)
            raise FlagError(f"--env-args {name}: must be {expected}, got {value!r}.")


def check_flags_of_task(env: str, names: list[str]) -> None:
    """Raises a FlagError if the task does not take the argument of a flag such as --max-new-tokens."""
    known, _, any_name = _known_arguments(env) if names else ({}, set(), True)
    if not any_name and (unknown := [name for name in names if name not in known]):
        raise FlagError(f"--{unknown[0].replace('_', '-')}: {env} takes only {', '.join(known)}.")


def default_arguments(env: str) -> dict[str, int | float | str]:
    """The defaults of the numbers and texts of a task of textenv; none of others, whose code is not imported."""
    if not is_own_task(env):
        return {}
    function: Any = load_env_creator(gym.spec(env).kwargs["task"])
    return {
        name: parameter.default
        for each in (TextMDP, function)  # what a task does not take itself it passes on to TextMDP
        for name, parameter in inspect.signature(each).parameters.items()
        if isinstance(parameter.default, int | float | str) and not isinstance(parameter.default, bool)
    }


def _known_arguments(env: str) -> tuple[dict[str, Kinds], set[str], bool]:
    """The arguments of a task that may be set, the names that may not, and whether it takes any other names."""
    import_registrations(env)
    spec = gym.spec(env.rpartition(":")[2])
    maker = spec.kwargs.get("task") or spec.vector_entry_point or spec.entry_point
    function: Any = load_env_creator(maker) if isinstance(maker, str) else maker
    known, any_name = _scalar_parameters(function)
    reserved = RESERVED | set(spec.kwargs)
    return {name: kinds for name, kinds in known.items() if name not in reserved}, reserved, any_name


def _scalar_parameters(function: Callable[..., object]) -> tuple[dict[str, Kinds], bool]:
    """The parameters of a function that a number or a text can set, and whether it takes any other names."""
    parameters = inspect.signature(function).parameters.values()
    try:
        hints = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # a name that exists for type checkers only
        hints = {}
    known = {
        p.name: kinds
        for p in parameters
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and (kinds := _kinds(hints.get(p.name, p.annotation if isinstance(p.annotation, type) else p.empty)))
    }
    if not any(p.kind == p.VAR_KEYWORD for p in parameters):
        return known, False
    if str(getattr(function, "__module__", "")).startswith("textenv."):  # the rest are arguments of TextMDP
        return _scalar_parameters(TextMDP)[0] | known, False
    return known, True


def _kinds(annotation: object) -> Kinds:
    """The scalar types of an annotation; none where it also takes paths or objects, which a text would name."""
    if annotation is inspect.Parameter.empty:
        return (int, float, str)
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    literals = tuple(value for kind in members if get_origin(kind) is Literal for value in get_args(kind))
    numbers = tuple(kind for kind in members if kind in (int, float))
    plain = {int, float, str, bool, type(None)}
    text = (str,) if str in members and all(kind in plain or get_origin(kind) is Literal for kind in members) else ()
    return (*numbers, *text, *literals)


def _is(value: object, kind: type) -> bool:
    """Whether a value has a type; an integer is a float too, True is no integer."""
    return isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
