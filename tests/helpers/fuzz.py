"""Fuzzing: values that are checked, and state machines that run until each rule has had its share."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.stateful import RULE_MARKER, RuleBasedStateMachine, rule, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

from tests.helpers.inputs import Inputs

ROUNDS = 400  # of `fuzz`, at most
STEPS = 30  # operations on one object, at most
SEED = 0 if settings.default.derandomize else secrets.randbits(32)  # in CI the same inputs every time


class FuzzedMachine(RuleBasedStateMachine):
    """A state machine that counts the applications of its rules, which are made by `operation`."""

    inputs: ClassVar[Inputs]
    names: ClassVar[list[str]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.inputs, cls.names = Inputs(), [name for name, rule in vars(cls).items() if hasattr(rule, RULE_MARKER)]


def operation(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """As hypothesis's `rule`; counts the calls that find no fault."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def count(machine: Any, **arguments: Any) -> None:
            function(machine, **arguments)
            type(machine).inputs[function.__name__] += 1

        return rule(**strategies)(count)

    return decorate


def fuzz_values(
    inputs: Inputs,
    kind: str,
    values: SearchStrategy[Any],
    check: Callable[[Any], None],
    count: int,
    start: int = SEED,
) -> None:
    """Calls `check` with `count` values of a strategy, and counts those that find no fault as inputs of a kind.

    `start` seeds them.
    """

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(values)
    def run(value: Any) -> None:
        check(value)
        inputs[kind] += 1

    run()


def fuzz(machine: type[FuzzedMachine], least: int, shrink: bool = True, start: int = SEED) -> None:
    """Runs a state machine until each of its rules has been applied `least` times.

    `start` seeds the operations.
    The calls that lead to a fault are printed, with `shrink` the fewest and smallest. It fails too if a rule is not
    applied often enough.
    """
    machine.inputs.clear()
    run = settings(
        max_examples=10,
        stateful_step_count=STEPS,
        deadline=None,
        print_blob=True,
        phases=[Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )
    for number in range(ROUNDS):
        run_state_machine_as_test(seed(start + number)(machine), settings=run)
        if not machine.inputs.short_of(machine.names, least):
            break
    assert machine.inputs.short_of(machine.names, least) == [], machine.inputs.table(machine.__name__)
