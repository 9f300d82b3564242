"""Reports: access by name, assertions, and the text that is printed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from textenv.reward_check.findings import Finding, RewardReport, Table, cell_text, quoted

REPORT = RewardReport(
    [
        Finding("contract", "alone", "holds", "the same", function="first"),
        Finding("contract", "alone", "broken", "not the same", "'a' has 1", function="second"),
        Finding("signal", "ties", "look here", "many"),
        Finding("signal", "none", "holds", "none"),
    ],
    [Table("signal", "numbers", ["a", "long name"], [["x", 1.23456], [None, float("nan")], ["y\x1b[2J", 12]])],
)


def test_a_finding_is_found_by_its_name() -> None:
    """The worst of several functions; an unknown name with those that there are."""
    assert REPORT["alone"].function == "second" and REPORT["ties"].verdict == "look here"
    assert REPORT.broken == [REPORT["alone"]]
    with pytest.raises(KeyError, match="no finding 'foo'; there are alone, ties, none"):
        REPORT["foo"]


def test_assert_holds() -> None:
    """With names they must hold; without, nothing may be broken."""
    REPORT.assert_holds("none")
    RewardReport(REPORT.findings[2:]).assert_holds()
    with pytest.raises(AssertionError, match=r"alone \[second\]: not the same\n.*'a' has 1") as caught:
        REPORT.assert_holds()
    assert "ties" not in str(caught.value)
    with pytest.raises(AssertionError, match="ties: many"):
        REPORT.assert_holds("none", "ties")
    with pytest.raises(KeyError, match="foo"):
        REPORT.assert_holds("foo")


def test_the_text_has_all_findings_and_tables() -> None:
    """Section by section; control characters are escapes, missing numbers are empty."""
    text = str(REPORT)
    assert text.index("CONTRACT") < text.index("SIGNAL") < text.index("-- numbers")
    assert all(f"{each.verdict:<9}  {each.name}" in text for each in REPORT.findings)
    assert "1.23" in text and "nan" not in text and "\x1b" not in text


def test_cells_are_short_numbers() -> None:
    """Three significant digits; whole numbers as they are; no minus zero."""
    cells = ["x", None, float("nan"), 1234567.0, 0.00012345, -0.0, 1234, np.float64(2.0)]
    assert [cell_text(cell) for cell in cells] == ["x", "", "", "1.23e+06", "0.000123", "0", "1,234", "2"]  # type: ignore[arg-type]


@given(st.text(max_size=200), st.integers(20, 120))
def test_a_quoted_text_is_short_and_keeps_its_ends(text: str, limit: int) -> None:
    """Whole where it is short."""
    found = eval(quoted(text, limit))
    assert len(found) <= max(limit, 20)
    assert found == text if len(text) <= limit else found[:5] == text[:5] and found[-5:] == text[-5:]
