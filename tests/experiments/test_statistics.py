"""Interquartile means, paired differences and their bootstrap intervals."""

from __future__ import annotations

import pytest

from experiments.statistics import interquartile_mean, paired_difference


def test_statistics() -> None:
    """The interquartile mean ignores the tails, intervals cover it, pairs must match, one seed has no interval."""
    estimate = interquartile_mean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0])
    assert estimate.value == pytest.approx(3.5)
    assert estimate.low is not None and estimate.high is not None and estimate.low < 3.5 < estimate.high
    assert interquartile_mean([1.0]).low is None and str(interquartile_mean([1.0])) == "1.000"
    difference = paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert (difference.value, difference.low, difference.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1.0], [1.0, 2.0])
