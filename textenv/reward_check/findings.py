"""What a check of a reward found: lines with a verdict, tables, and the completions to read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from textenv.data import printable

Verdict = Literal["holds", "look here", "broken"]
Section = Literal["contract", "signal", "holes", "agreement"]
VERDICTS: tuple[Verdict, ...] = ("holds", "look here", "broken")
Cell = str | float | None


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        section: what it is about.
        name: of the check; findings of several functions may share it.
        verdict: "holds", "look here" or "broken".
        text: what was found, with its numbers.
        example: the smallest example that shows it; "" where none is needed.
        function: the reward function that it is about; "" for their weighted sum.
    """

    section: Section
    name: str
    verdict: Verdict
    text: str
    example: str = ""
    function: str = ""

    def __str__(self) -> str:
        about = f" [{self.function}]" if self.function else ""
        return f"{self.verdict:<9}  {self.name}{about}: {self.text}" + (
            f"\n{'':11}{self.example}" if self.example else ""
        )


@dataclass(frozen=True)
class Table:
    """Numbers behind the findings.

    Attributes:
        section: of the report.
        title: what it shows.
        columns: their names.
        rows: texts and numbers; None where there is no number.
    """

    section: Section
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def texts(self) -> Iterator[list[str]]:
        """The cells of each row as text; numbers with three significant digits."""
        for row in self.rows:
            yield [cell_text(cell) for cell in row]


@dataclass(frozen=True)
class RewardReport:
    """What was found. `report["repeats"]` is the finding of that name, the worst if several functions have it.

    Attributes:
        findings: in the order of the sections; of the holes, that by which a policy gains most of E score - beta KL
            if it does this alone is first. A training may find another one before.
        tables: the numbers behind them.
        unseen: features and edits that show nothing or were not tried; not printed, but found by their names.
    """

    findings: list[Finding]
    tables: list[Table] = field(default_factory=list)
    unseen: list[Finding] = field(default_factory=list)

    @property
    def broken(self) -> list[Finding]:
        """The findings that are broken."""
        return [each for each in self.findings if each.verdict == "broken"]

    def __getitem__(self, name: str) -> Finding:
        """Raises a KeyError with the names that there are."""
        every = [*self.findings, *self.unseen]
        found = [each for each in every if each.name == name]
        if not found:
            raise KeyError(f"no finding {name!r}; there are {', '.join(dict.fromkeys(f.name for f in every))}")
        return max(found, key=lambda each: VERDICTS.index(each.verdict))

    def assert_holds(self, *names: str) -> None:
        """Asserts that the named checks hold; without names, that nothing is broken.

        Raises:
            AssertionError: the findings for which that is not so.
            KeyError: there is no finding of a name.
        """
        wrong = [each for name in names if (each := self[name]).verdict != "holds"] if names else self.broken
        if wrong:
            raise AssertionError("The reward does not pass:\n" + "\n".join(map(str, wrong)))

    def __str__(self) -> str:
        parts = []
        for section in dict.fromkeys(each.section for each in self.findings):
            lines = [str(each) for each in self.findings if each.section == section]
            parts.append("\n".join([section.upper(), *lines]))
            parts += [_plain(table) for table in self.tables if table.section == section]
        return printable("\n\n".join(parts), lines=True)


def cell_text(cell: Cell) -> str:
    """A text as it is, a number with three significant digits, "" for None and nan."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return cell if isinstance(cell, str) else f"{cell:,}" if isinstance(cell, int) else f"{cell + 0.0:.3g}"


def quoted(text: str, limit: int = 80) -> str:
    """A text in quotes; of a long one its beginning and its end."""
    half = (limit - 5) // 2
    return repr(text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}")


def _plain(table: Table) -> str:
    """The table with aligned columns."""
    rows = [list(table.columns), *table.texts()]
    widths = [max(len(row[k]) for row in rows) for k in range(len(table.columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([f"-- {table.title}", *lines])
