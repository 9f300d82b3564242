"""The fuzz tests have enough inputs, together and of each kind, and say how many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.inputs import LEAST, PARTS, PROPERTY, TOTAL, Inputs, check_inputs, lines

PART = PARTS["TextEnv"]


def test_the_parts_are_enough() -> None:
    """Each slow test asserts its part."""
    assert sum(PARTS.values()) >= TOTAL


def record(inputs: dict[str, int], kinds: list[str]) -> list[Any]:
    """What is recorded of a test's inputs."""
    found: list[Any] = []
    check_inputs("TextEnv", Inputs(inputs), kinds, lambda *item: found.append(item))
    return found


def test_enough_inputs_are_recorded() -> None:
    """At the least ones, too."""
    inputs = {"step": PART - LEAST, "reset": LEAST}
    assert record(inputs, ["step", "reset"]) == [(PROPERTY, ["TextEnv", inputs])]


@pytest.mark.parametrize(
    ("inputs", "kinds"),
    [
        ({"step": PART, "reset": LEAST - 1}, ["step", "reset"]),
        ({"step": PART}, ["step", "reset"]),  # a kind that was never counted
        ({"step": PART - LEAST - 1, "reset": LEAST}, ["step", "reset"]),
    ],
)
def test_too_few_inputs_are_told(inputs: dict[str, int], kinds: list[str]) -> None:
    """Control: of one kind, of a kind without any, of all."""
    with pytest.raises(AssertionError, match=r"TextEnv: [\d,]+ inputs\n  step"):
        record(inputs, kinds)


def test_what_is_shown() -> None:
    """A line per test, the rarest kind in it, and the sum; nothing where no fuzz test ran."""
    single = SimpleNamespace(user_properties=[("other", 1), (PROPERTY, ["TextEnv", {"step": 4000, "reset": 500}])])
    files = SimpleNamespace(user_properties=[(PROPERTY, ["files", {"config.json": 501}])])
    assert lines([single, SimpleNamespace(user_properties=[]), files]) == [
        "fuzzed TextEnv: 4,500 inputs of 2 kinds, the least 500 (reset)",
        "fuzzed files: 501 inputs of 1 kinds, the least 501 (config.json)",
        "fuzzed together: 5,001 inputs in 2 tests",
    ]
    assert lines([SimpleNamespace(user_properties=[("other", 1)])]) == []
