"""Shared fixtures: one thread a test process, the real models where they are present, small tasks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ASSETS

# before torch is there, and for the processes that tests start: rounding in bfloat16 depends on the threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"  # a name that is nowhere is refused at once


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of the real models and data."""
    if not ASSETS.is_dir():
        pytest.skip("the real models and data are not on this machine")
    return ASSETS


@pytest.fixture(autouse=True)
def switches_of_the_process() -> Iterator[None]:
    """What a test has torch do is not for the next one; torch.compile switches torch.distributions' checks off."""
    yield
    torch.distributions.Distribution.set_default_validate_args(True)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`GraphSampler` calls its step as it is, which needs no seconds and no compiler; see tests/agents/policy/test_compile.py."""
    from agents.sampling.graph import CapturedStep

    monkeypatch.setattr(CapturedStep, "_compiled", lambda tape, texts: tape._step)
