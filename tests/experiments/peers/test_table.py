"""The table of other libraries' losses, by losses whose gradients are known; no other library is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agents.files import read_json
from experiments.peers.__main__ import measure_all, write
from experiments.peers.row import Claim, Row, exact_direction, exact_direction_off_policy
from experiments.peers.table import bias, cells, cosine, page, share, stated
from experiments.peers.toys import BETA
from tests.helpers.losses import centred, relative, to_go

CLAIM = Claim("the gradient of J", "a docstring", exact_direction, "it was measured")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """RLOO, exact; the mean return as the baseline, exact but for a factor; a loss of the sign of the return."""
    wrong = lambda rollout, log_probs: to_go(rollout, log_probs.clamp(min=-1.0))  # noqa: E731
    losses = {"exact": relative, "halved": centred, "wrong": wrong}
    objective = "score - KL, equal lengths"
    return measure_all([Row(name, lambda loss=loss: loss, objective, claim=CLAIM) for name, loss in losses.items()])


def test_a_row_shows_what_verify_measures(rows: list[dict[str, Any]]) -> None:
    """Bias with the factor, cosine without it. Control: a wrong loss."""
    exact, halved, wrong = map(cells, rows)
    assert exact[0] == "`exact`" and exact[3:8] == ["0", "1", "1", "1", "1"] and exact[-2:] == ["yes", ""]
    assert halved[3:8] == ["0.5", "1", "1", "1", "1"]
    assert wrong[3] != "0" and "1" not in wrong[4:8]


def test_a_claim_is_compared_with_the_measurement(rows: list[dict[str, Any]]) -> None:
    """It agrees for the first two, and not for the third (control)."""
    verdicts = ["It agrees: it was measured." in stated(row) for row in rows]
    assert verdicts == [True, True, False] and "It does not agree: it was measured." in stated(rows[2])


def test_off_policy_is_compared_apart() -> None:
    """RLOO without importance weights has the exact gradient on its own samples alone."""
    claim = Claim("", "", exact_direction_off_policy, "")
    (row,) = measure_all([Row("RLOO", lambda: relative, "score - KL, equal lengths", claim=claim)])
    assert row["claim"]["holds"] is False and min(row["cosine"].values()) > 1 - 1e-9


def test_the_page_has_every_library_that_was_measured(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """One after the other, in the order of the table; and what was written is what was measured."""
    write("sb3", rows[:1], tmp_path)
    assert "`exact`" in (page := (tmp_path / "README.md").read_text()) and "`halved`" not in page
    (tmp_path / "peers-trl.json").write_bytes((tmp_path / "peers-sb3.json").read_bytes())
    write("sb3", rows[1:2], tmp_path)
    page = (tmp_path / "README.md").read_text()
    assert page.index("`exact`") < page.index("`halved`")
    assert read_json(tmp_path / "peers-sb3.json")["rows"] == rows[1:2]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (1.0, "1"), (1 - 1e-8, "1"), (1 - 1e-5, "0.999990"), (0.9876, "0.988"), (-0.5, "-0.500"), (-1, "-1")],
)
def test_a_cosine_looks_exact_only_where_it_is(value: float | None, shown: str) -> None:
    """Up to the rounding of float32."""
    assert cosine(value) == shown


def test_biases_and_shares() -> None:
    """Zero up to rounding; "none" where a loss leads nowhere; nothing where it was not measured."""
    assert [bias(1e-7), bias(0.1234), bias(1.0)] == ["0", "0.12", "1"]
    assert [share(None), share("none"), share(0.98765)] == ["", "none", "98.8%"]


def test_the_committed_page_comes_from_the_committed_numbers() -> None:
    """Of all libraries."""
    folder = Path("experiments/results/verification")
    measured = [read_json(folder / f"peers-{name}.json") for name in ("trl", "torchrl", "sb3")]
    assert page(measured, BETA) == (folder / "README.md").read_text()
