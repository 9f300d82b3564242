"""Counts of kernels, of the times that the host waits, and of uploads.

- A kernel is a call of an operator that computes. Views and allocations are none. An operator counts once, also where
  CUDA launches several kernels for it; attention is computed by its equation, and so counts more than a fused kernel.
- A wait is a point where the host needs what the device has not computed yet: a copy to the host, `.item()`, and
  operators whose result has a size that only the device knows.
- An upload is a copy from the host to the device. torch waits for the device's queue there too, unless the copy is
  `non_blocking`. It is counted apart, since it needs no result of the device and can be avoided in other ways.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.paths import ROOT

PACKAGES = tuple(str(ROOT / name) for name in ("agents", "textenv", "experiments", "tests"))
HERE = str(Path(__file__).parent)


@dataclass
class Counts:
    """What the device did during `counting`, each by the name of its operator."""

    by_kernel: Counter[str] = field(default_factory=Counter)
    by_wait: Counter[str] = field(default_factory=Counter)
    by_upload: Counter[str] = field(default_factory=Counter)
    async_uploads: int = 0
    """Uploads with `non_blocking`, which are not among `by_upload`."""
    wait_lines: Counter[str] = field(default_factory=Counter)
    """Waits by the line of this repository, `path:line`, that led to them."""
    upload_lines: Counter[str] = field(default_factory=Counter)

    @property
    def kernels(self) -> int:
        """The number of kernels."""
        return self.by_kernel.total()

    @property
    def waits(self) -> int:
        """How often the host needed what the device computes."""
        return self.by_wait.total()

    @property
    def uploads(self) -> int:
        """The number of copies to the device that wait for its queue."""
        return self.by_upload.total()


_active: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Counts what the device does within it, on all threads. Calls may be nested."""
    counts = Counts()
    _active.append(counts)
    try:
        yield counts
    finally:
        _active[:] = [each for each in _active if each is not counts]


def count_kernel(name: str) -> None:
    """Counts a kernel."""
    for counts in _active:
        counts.by_kernel[name] += 1


def count_wait(name: str, times: int = 1) -> None:
    """Counts waits of the host."""
    if times and _active:
        line = _line()
        for counts in _active:
            counts.by_wait[name] += times
            counts.wait_lines[line] += times


def count_upload(name: str, non_blocking: bool = False) -> None:
    """Counts a copy from the host to the device."""
    if _active:
        line = _line()
        for counts in _active:
            if non_blocking:
                counts.async_uploads += 1
            else:
                counts.by_upload[name] += 1
                counts.upload_lines[line] += 1


def _line() -> str:
    """The innermost line of this repository on the stack."""
    frame = sys._getframe()
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(PACKAGES) and not path.startswith(HERE):
            return f"{Path(path).relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
