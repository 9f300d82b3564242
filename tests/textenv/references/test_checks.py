"""What users may pass as a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.helpers.tasks import make, words, zero
from textenv.testing import play


def test_any_object_with_log_probs_is_a_reference() -> None:
    """A reference is anything with log_probs(input_ids, attention_mask) -> [B, V]; it requires nothing else."""

    class CustomReference:
        def log_probs(self, input_ids: Any, attention_mask: Any) -> Any:
            return np.log(np.tile([0.1, 0.2, 0.3, 0.4], (len(input_ids), 1)))

    episode = play(make(words(reference=CustomReference(), reward=zero, kl_coef=1.0)), 0, "c")
    assert np.exp(episode.rewards) == pytest.approx([0.4, 0.1])


def test_without_a_reference_every_token_is_equally_likely() -> None:
    """reference=None is uniform."""
    assert np.exp(play(make(words(reference=None)), 0, "c").ref_log_probs) == pytest.approx([0.25, 0.25])
