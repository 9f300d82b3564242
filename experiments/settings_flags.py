"""The flags of the agents that a command line asks for, and of no others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from experiments.agent_classes import AGENTS, UNTRAINED, Settings, find_agent, settings_key, settings_of
from experiments.compare import CompareConfig
from experiments.config import TrialConfig
from experiments.errors import FlagError
from experiments.parsing import parse

HELP = {"-h", "-H", "--help", "--help-verbose"}


@dataclasses.dataclass
class _Train:
    agent: str | None = None


@dataclasses.dataclass
class _Compare:
    agents: list[str] | None = None


def asked_agents(arguments: Sequence[str]) -> list[str] | None:
    """The agents whose settings are flags of a command line; None for commands that train none.

    These are the agents that it names; the command's default where it names none, and no agent where it names none and
    asks for help.

    Raises:
        FlagError: there is no such agent, or a flag is a setting of an agent that is not asked for.
        SystemExit: the command line cannot be parsed.
    """
    kind = {"train": _Train, "compare": _Compare}.get(arguments[0] if arguments else "")
    if kind is None:
        return None
    found, _ = parse(
        kind, arguments[1:], return_unknown_args=True, add_help=False, prog=f"python -m experiments {arguments[0]}"
    )
    names = found.agents if isinstance(found, _Compare) else found.agent and [found.agent]
    if names is None:
        if HELP & set(arguments):
            return []
        names = CompareConfig().agents if isinstance(found, _Compare) else [TrialConfig().agent]
    agents = [name for name in names if name not in UNTRAINED]
    for name in agents:
        find_agent(name, "--agents" if isinstance(found, _Compare) else "--agent")
    _check_asked(arguments, agents)
    return agents


def _check_asked(arguments: Sequence[str], agents: Sequence[str]) -> None:
    """Raises a FlagError if a flag is a setting of one of the project's agents that is not asked for."""
    others = {settings_key(name): name for name in AGENTS if name not in agents}
    for argument in arguments:
        prefix, dot, _ = argument.removeprefix("--").partition(".")
        if argument.startswith("--") and dot and (name := others.get(prefix.replace("-", "_"))):
            raise FlagError(
                f"{argument.partition('=')[0]} is a setting of {name}, which is not asked for; asked for: "
                f"{', '.join(agents)}."
            )


def registry_of(agents: Sequence[str]) -> ConstructorRegistry:
    """What makes a field of type `Settings` the flags of some agents, for tyro."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if info.type is not Settings:
            return None
        kinds = {settings_key(name): settings_of(name) for name in agents}

        def make(**settings: Any) -> Settings:
            return Settings({key: dataclasses.asdict(value) for key, value in settings.items()})

        return StructConstructorSpec(
            make, tuple(StructFieldSpec(key, kind, kind(), helptext=kind.__doc__) for key, kind in kinds.items())
        )

    return registry
