"""masked_log_softmax: the categorical distribution over the tokens that a mask allows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tasks import (
    log_softmax,
)
from textenv.categorical import masked_log_softmax


@settings(max_examples=50, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50), min_size=4, max_size=4),
    mask=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
    noise=st.lists(st.floats(allow_nan=False, width=32), min_size=4, max_size=4),
)
def test_masked_actions_never_matter(logits: list[float], mask: list[bool], noise: list[float]) -> None:
    """masked_log_softmax: allowed tokens sum to one, masked ones are -inf, whatever their logits are."""
    allowed = np.array(mask)
    right = masked_log_softmax(np.array(logits), allowed)
    assert np.exp(right[allowed]).sum() == pytest.approx(1.0)
    assert np.isneginf(right[~allowed]).all()
    np.testing.assert_allclose(right[allowed], log_softmax(np.array(logits), allowed)[allowed], atol=1e-12)
    assert (masked_log_softmax(np.where(allowed, logits, noise), allowed) == right).all()
    if allowed.sum() > 1:  # negative control: an allowed action's logit does matter
        changed = np.array(logits) + (np.arange(4) == np.flatnonzero(allowed)[0])
        assert (masked_log_softmax(changed, allowed) != right).any()


def test_the_tests_log_softmax_equals_hand_computed_values() -> None:
    """The tests' own oracle of a masked softmax, on a distribution computed by hand."""
    assert np.exp(log_softmax(np.log([1.0, 2.0, 5.0]), np.array([True, True, False]))) == pytest.approx(
        [1 / 3, 2 / 3, 0]
    )
