"""The reductions of metrics against the same metrics of undivided tokens, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents.training import METRICS, Metric
from agents.training.reduction import merge_micro_batches, reduce_minibatches, without_counts
from tests.helpers.agents import agent_of, every_kind


def parts(seed: int = 0) -> list[dict[str, Any]]:
    """Three micro-batches: the ratios of their tokens, and which of these have A > 0."""
    rng = np.random.default_rng(seed)
    sizes = (2, 5, 3)
    return [
        {"rho": rng.lognormal(size=n), "high": rng.random(n) < 0.5, "loss": rng.normal(size=c)}
        for n, c in zip(sizes, (1, 4, 2), strict=True)
    ]


def row_of(part: dict[str, Any]) -> dict[str, float]:
    """The metrics of some tokens and completions, from their definitions."""
    rho, high = part["rho"], part["high"]
    return {
        "loss/policy_avg": part["loss"].mean(),
        "val/ratio": rho.mean(),
        "val/ratio_error_max": abs(rho - 1).max(),
        "val/ess": rho.sum() ** 2 / (len(rho) * (rho**2).sum()),
        "policy/clipfrac_high_avg": (rho[high] > 1.2).sum() / max(1, high.sum()),
        "my/metric": part["loss"].mean() ** 1,
        "num_completions": float(len(part["loss"])),
        "num_tokens": float(len(rho)),
        "num_high": float(high.sum()),
    }


def whole(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts in one."""
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


@pytest.mark.parametrize("seed", range(5))
def test_merged_metrics_are_those_of_the_undivided_minibatch(seed: int) -> None:
    """Of every kind, and of a name that the table does not have. Control: plain means are other numbers."""
    found, rows = merge_micro_batches([row_of(part) for part in parts(seed)]), [row_of(p) for p in parts(seed)]
    assert found == pytest.approx(row_of(whole(parts(seed))))
    means = {name: np.mean([row[name] for row in rows]) for name in found}
    assert all(means[name] != pytest.approx(found[name]) for name in ("loss/policy_avg", "val/ess", "my/metric"))
    assert without_counts(found).keys() == {name for name in found if not name.startswith("num_")}


def test_minibatches_are_reduced_as_the_table_says() -> None:
    """The mean, the first, the largest, the smallest; values that are not finite are left out."""
    names = ("loss/policy_avg", "val/first_ratio_error_avg", "val/ratio_error_max", "val/ess", "my/metric")
    rows = [dict.fromkeys(names, value) for value in (2.0, 1.0, float("nan"), 6.0)]
    assert reduce_minibatches(rows) == dict(zip(names, (3.0, 2.0, 6.0, 1.0, 3.0), strict=True))
    assert reduce_minibatches([dict.fromkeys(names, float("inf"))]) == reduce_minibatches([]) == {}


def test_a_metric_may_be_in_some_rows_only() -> None:
    """In the first or another: it is reduced over the rows that have it, as if there were no others."""
    first, second = (
        {"num_completions": 1.0},
        {"num_completions": 3.0, "my/metric": 4.0, "num_tokens": 2.0, "val/ess": 0.5},
    )
    second["val/ratio"] = 1.5
    for rows in ([first, second], [second, first], [second]):
        merged = merge_micro_batches(rows)
        assert [merged[name] for name in ("my/metric", "val/ratio", "val/ess")] == pytest.approx([4.0, 1.5, 0.5])
        assert merged["num_completions"] == sum(row["num_completions"] for row in rows)
        assert reduce_minibatches(rows)["my/metric"] == 4.0
    third = second | {"my/metric": 8.0, "num_completions": 1.0}
    assert merge_micro_batches([first, second, third])["my/metric"] == 5.0
    assert reduce_minibatches([first, second, third])["my/metric"] == 6.0


def test_a_metric_from_outside_may_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; control: without it the metric is a mean."""
    rows = [{"my/largest": value, "num_completions": 1.0} for value in (1.0, 5.0)]
    assert merge_micro_batches(rows)["my/largest"] == reduce_minibatches(rows)["my/largest"] == 3.0
    monkeypatch.setitem(METRICS, "my/largest", Metric("max", minibatches="max"))
    assert merge_micro_batches(rows)["my/largest"] == reduce_minibatches(rows)["my/largest"] == 5.0


def test_a_mean_over_an_unknown_count_is_refused() -> None:
    """The error names both."""
    with pytest.raises(ValueError, match="val/ratio is a mean over num_tokens, which the losses must return too"):
        merge_micro_batches([{"val/ratio": 1.0, "num_completions": 1.0}])


@every_kind
def test_every_metric_of_the_losses_is_in_the_table(kind: Any) -> None:
    """So that none of ours is reduced by the default."""
    agent = agent_of(kind)
    losses, names = agent.losses, set[str]()

    def recorded(batch: Any) -> Any:
        for loss, info in losses(batch):
            names.update(info)
            yield loss, info

    agent.losses = recorded
    agent.train(agent.collect())
    assert len(names) > 2 and names <= METRICS.keys()
