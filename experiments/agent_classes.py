"""The agents that `train` and `compare` know by name, any agent of the user's, and the settings of each.

A name is a key of `AGENTS`, or `module:Class` of a subclass of `agents.Agent`. The settings of an agent are the fields
of its dataclass, without those that all agents share. On the command line they are flags: `--ppo.clip-range` is the
field `clip_range` of PPO.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser
import tyro

from agents import RANGES, Agent
from agents.files import JsonObject
from experiments.errors import FlagError
from experiments.library_agent import LibraryAgent
from experiments.named_code import import_named
from experiments.ranges import check_flags
from textenv.arguments import is_number

AGENTS = {  # a new agent is one line here
    "reinforce": "agents.reinforce:REINFORCE",
    "actor_critic": "agents.actor_critic:ActorCritic",
    "ppo": "agents.ppo:PPO",
    "rloo": "agents.rloo:RLOO",
    "grpo": "agents.grpo:GRPO",
    "path_consistency": "agents.path_consistency:PathConsistency",
    "sb3-ppo": "experiments.stable_baselines:SB3PPO",
    "sb3-a2c": "experiments.stable_baselines:SB3A2C",
    "maskable-ppo": "experiments.stable_baselines:SB3MaskablePPO",
    "trl-rloo": "experiments.trl_agents:TRLRLOO",
    "trl-grpo": "experiments.trl_agents:TRLGRPO",
}
UNTRAINED = ("random", "best-of-n")  # what `compare --agents` takes besides
SHARED = {"policy", "initial_policy", "env", "learning_rate", "n_episodes", "seed"}  # no settings: flags of all agents
PLAIN = (int, float, bool, str, type(None))  # what a setting may be: what a flag and a JSON file can hold
# attributes that `__post_init__` of our agents sets: the value of a field of that name would be lost
SET_BY_AGENTS = {
    *(
        "generator",
        "health",
        "kl_coef",
        "num_timesteps",
        "num_updates",
        "optimization",
        "sampler",
        "step_guard",
    ),
    "skipped_continuations",
    "replay",
}

METAVAR = "{" + ",".join(AGENTS) + "}|module:Class"  # in the help of a flag that names an agent

AgentClass = type[Agent] | type[LibraryAgent]


class Settings(dict[str, JsonObject]):
    """The settings of agents, by `settings_key`; of each a value for every name."""


def names_user_code(name: str) -> bool:
    """Whether a name is `module:Class`, which is code of others."""
    return name not in AGENTS and ":" in name


def short_name(name: str) -> str:
    """The name of an agent in tables and folders: for `module:Class` it is the class's."""
    return name.rpartition(":")[2] if names_user_code(name) else name


def display_name(name: str) -> str:
    """The name of an agent on a page: for one of ours it is the class's, as in the READMEs."""
    module, _, kind = AGENTS.get(name, "").partition(":")
    return kind if module.startswith("agents.") else short_name(name)


def settings_key(name: str) -> str:
    """The name under which an agent's settings are saved; its flags begin with it."""
    return short_name(name).replace("-", "_")


def trained_agents(config: object) -> list[str]:
    """The names of the agents that a config of `train` or `compare` trains; none of another command's."""
    agents = getattr(config, "agents", None) or [getattr(config, "agent", None)]
    return [name for name in agents if name is not None and name not in UNTRAINED]


def find_agent(name: str, flag: str = "--agent") -> AgentClass:
    """Returns the class of an agent.

    Args:
        name: a key of `AGENTS`, or `module:Class`, which is imported.
        flag: the flag that has the name, for the message.

    Raises:
        FlagError: there is no such agent, it cannot be imported, or it is no agent that flags can describe.
    """
    if not isinstance(name, str) or not (name in AGENTS or ":" in name):
        raise FlagError(
            f"{flag} must be one of {', '.join(AGENTS)}, or module:Class of an agent of your own, got {name!r}."
        )
    kind: AgentClass = import_named(AGENTS.get(name, name), flag)
    if names_user_code(name):
        _check_external(kind, name, flag)
    return kind


def check_distinct(names: Sequence[str], flags: Sequence[str], flag: str) -> None:
    """Raises a FlagError if the name of a user's agent is that of another agent, or of a flag.

    Names that differ in upper and lower case alone are one name: some file systems do not tell such folders apart.

    Args:
        names: the agents that are asked for.
        flags: the names of the flags that all agents share.
        flag: the flag that has the names.
    """
    taken = {name.lower().replace("-", "_") for name in (*AGENTS, *flags, *UNTRAINED, "initial")}
    for name in filter(names_user_code, names):
        key = settings_key(name).lower()
        if key in taken:
            raise FlagError(
                f"{flag} {name!r}: the class must have a name of its own, got {short_name(name)}, which is that of "
                "another agent or of a flag; rename it."
            )
        taken.add(key)


@cache
def settings_of(name: str) -> type:
    """Returns a dataclass of an agent's settings, with their types, defaults and docstrings.

    Raises:
        FlagError: see `find_agent`.
    """
    kind = find_agent(name)
    documented = {
        parameter.arg_name: parameter.description
        for base in reversed(kind.__mro__[:-1])  # the last is `object`
        for parameter in docstring_parser.parse_from_object(base).params
    }
    hints = get_type_hints(kind)
    settings = [
        (
            f.name,
            Annotated[_plain_type(hints[f.name]), tyro.conf.arg(help=documented.get(f.name))],
            dataclasses.field(default=f.default),
        )
        for f in dataclasses.fields(kind)
        if f.name not in SHARED and f.init
    ]
    return dataclasses.make_dataclass(
        f"{kind.__name__}Settings", settings, namespace={"__doc__": f"Settings of {kind.__name__}."}
    )


def complete_settings(given: Mapping[str, Mapping[str, object]], names: Sequence[str]) -> Settings:
    """Returns all settings of some agents: those that are given, and the defaults of the others.

    Args:
        given: settings by `settings_key`.
        names: the agents.

    Raises:
        FlagError: a setting that its agent does not have, or of another agent; or a value that is refused.
    """
    keys = {settings_key(name): name for name in names}
    for key in given:
        if key not in keys:
            raise FlagError(
                f"--{key.replace('_', '-')}.* are settings of an agent that is not asked for; asked for: "
                f"{', '.join(names)}."
            )
    complete = Settings()
    for key, name in keys.items():
        kind, flag = settings_of(name), key.replace("_", "-")
        values = given.get(key, {})
        if unknown := set(values) - {f.name for f in dataclasses.fields(kind)}:
            raise FlagError(f"--{flag}.{min(unknown).replace('_', '-')}: {name} has no such setting.")
        settings = kind(**values)
        norm = settings.max_grad_norm
        if is_number(norm) and norm == math.inf:  # JSON has no inf: as in `Agent`, its largest number
            settings.max_grad_norm = RANGES["max_grad_norm"].high
        check_flags(settings, f"--{flag}.")
        complete[key] = dataclasses.asdict(settings)
    return complete


def _check_external(kind: object, name: str, flag: str) -> None:
    """Raises a FlagError unless a class of the user's is an agent whose fields can be flags."""
    refused = f"{flag} {name!r} must be"
    if not isinstance(kind, type) or not issubclass(kind, Agent):
        raise FlagError(f"{refused} a subclass of agents.Agent, got {kind!r:.100}.")
    if inspect.isabstract(kind):
        missing = ", ".join(sorted(kind.__abstractmethods__))
        raise FlagError(f"{refused} an agent that can be made, but it lacks {missing}.")
    if "__dataclass_fields__" not in vars(kind) and inspect.get_annotations(kind):
        raise FlagError(f"{refused} a dataclass, so that its settings are flags; write @dataclass(eq=False) above it.")
    try:
        hints = get_type_hints(kind)
    except NameError as error:
        raise FlagError(f"{refused} a class whose annotations exist when it runs: {error}.") from error
    inherited = {f.name for f in dataclasses.fields(Agent)}
    for f in dataclasses.fields(kind):
        if f.name in inherited:
            continue
        if f.name in SET_BY_AGENTS:
            raise FlagError(f"{refused} a class without a field {f.name!r}: `Agent` sets it itself; rename the field.")
        if (hidden := _hidden_by(f.name, kind)) is not None:
            raise FlagError(f"{refused} a class without a field {f.name!r}: {hidden} exists; rename the field.")
        if f.init and f.default is dataclasses.MISSING:
            raise FlagError(f"{refused} a class whose fields have defaults; {f.name!r} has none.")
        if f.init and _plain_type(hints[f.name]) is None:
            raise FlagError(
                f"{refused} a class whose fields are numbers, texts, bool, Literal or None, since they are flags; got "
                f"{f.name}: {hints[f.name]}."
            )


def _hidden_by(name: str, kind: type) -> str | None:
    """The method or class variable of a base class that a field of this name would hide, if there is one."""
    for base in kind.__mro__[1:]:
        own = {f.name for f in dataclasses.fields(base)} if dataclasses.is_dataclass(base) else set()
        if name in vars(base).keys() - own:
            return f"{base.__name__}.{name}"
    return None


def _plain_type(annotation: object) -> object:
    """The part of a type that a flag can hold: of a union its plain members; None where there is none."""
    if annotation in PLAIN or get_origin(annotation) is Literal:
        return annotation
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if _plain_type(member) is not None or member is type(None)]
        if any(member is not type(None) for member in members):
            return Union[tuple(members)]  # noqa: UP007
    return None
