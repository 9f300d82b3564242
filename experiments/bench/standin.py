"""The stand-in device, on which the part `device` counts kernels and waits where there is no GPU.

It replaces functions of torch, on an interface that torch calls experimental. So it is a tool of the tests and not of
the package, `tests/helpers/standin`, and the part runs in a checkout.
"""

from __future__ import annotations

import importlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NAME = "standin"
FOLDER = Path(__file__).parents[2] / "tests" / "helpers" / "standin"


class Counter:
    """Counts what the device does from `begin` to `end`. Installs the device, for the whole process."""

    def __init__(self) -> None:
        self.device: Any = importlib.import_module("tests.helpers.standin")
        self.device.install()
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"{NAME}:0"  # where the trainers of TRL train
        self._counting = ExitStack()
        self._counts: Any = None

    def begin(self) -> None:
        """Begins to count."""
        self._counts = self._counting.enter_context(self.device.counting())

    def end(self) -> dict[str, float]:
        """Returns the number of kernels, and of the times that the host waited."""
        self._counting.close()
        return {"kernels": float(self._counts.kernels), "waits": float(self._counts.waits)}
