"""How many inputs the fuzz tests have had, by kind, and how many they must have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

LEAST = 500  # inputs of each kind in a slow test
TOTAL = 20_000  # inputs of all slow tests together; each has its part of them:
PARTS = {"TextEnv": 5_000, "TextVectorEnv": 5_000, "flags": 6_000, "files of runs": 5_000, "other files": 5_000}
PROPERTY = "fuzzed"  # of a test's report: the title and the inputs


class Inputs(Counter[str]):
    """The number of inputs by the name of their kind: a rule of a state machine, a type of file, a flag."""

    def line(self, title: str) -> str:
        """The number of all inputs, and the rarest kind."""
        name, number = min(self.items(), key=lambda item: item[1])
        return f"{title}: {self.total():,} inputs of {len(self)} kinds, the least {number:,} ({name})"

    def table(self, title: str) -> str:
        """A line per kind, the rarest one last."""
        width = max(map(len, self), default=0)
        lines = [f"  {name:<{width}}  {number:>6}" for name, number in self.most_common()]
        return "\n".join([f"{title}: {self.total():,} inputs", *lines])

    def short_of(self, names: Iterable[str], least: int) -> list[str]:
        """The names with fewer inputs than `least`."""
        return [name for name in names if self[name] < least]


def check_inputs(title: str, inputs: Inputs, kinds: Iterable[str], record_property: Any) -> None:
    """A slow test has had its part of all inputs, and enough of each kind; they are shown after the last test.

    `kinds` are named apart from what was counted: a kind without any input is missing there.
    """
    assert inputs.short_of(kinds, LEAST) == [], inputs.table(title)
    assert inputs.total() >= PARTS[title], inputs.table(title)
    record_property(PROPERTY, [title, dict(inputs)])


def lines(reports: Iterable[Any]) -> list[str]:
    """What to show of the reports of tests: a line for each fuzz test, and the number of all inputs."""
    fuzzed = [value for report in reports for name, value in report.user_properties if name == PROPERTY]
    total = sum(Inputs(counts).total() for _, counts in fuzzed)
    each = [f"fuzzed {Inputs(counts).line(title)}" for title, counts in fuzzed]
    return [*each, f"fuzzed together: {total:,} inputs in {len(each)} tests"] if each else []
