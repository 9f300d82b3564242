"""Fixtures and settings of all tests: one thread per test process, the real models where they are present."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.inputs import lines
from tests.helpers.paths import ASSETS

# before torch is imported, and for the OS processes that tests start: rounding in bfloat16 depends on the threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the tests were started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # an unknown model name fails without a network request


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The inputs of the fuzz tests. pytest-xdist runs the tests in other processes, which cannot print them."""
    for line in lines(terminalreporter.getreports("passed")):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of the real models and data."""
    if not ASSETS.is_dir():
        pytest.skip("the real models and data are not on this machine")
    return ASSETS


@pytest.fixture(autouse=True, scope="session")
def imitations() -> Iterator[None]:
    """Policies of toys are trained once per process, where the agents are installed."""
    if importlib.util.find_spec("transformers") is None:
        yield
        return
    from tests.helpers.imitations import remembered

    with remembered():
        yield


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Restores torch's global settings after each test; torch.compile switches off torch.distributions' checks."""
    yield
    torch.distributions.Distribution.set_default_validate_args(True)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """`GraphSampler` runs its step uncompiled: no compiler, no delay. See tests/agents/policy/test_compile.py."""
    from agents.sampling.graph import CapturedStep

    monkeypatch.setattr(CapturedStep, "_compiled", lambda captured, state: captured._step)
