"""The messages between the bench and a variant process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

import torch

from experiments.bench.standin import NAME as STANDIN
from experiments.bench.standin import Counter


class RoundResult(NamedTuple):
    """The result of a round: number of completion tokens, seconds by phase, and other numbers to report."""

    tokens: int
    phases: dict[str, float]
    numbers: dict[str, float] = {}  # noqa: RUF012 (a default that is never modified)


Round = Callable[[], RoundResult]  # runs one round


def serve(protocol: RoundProtocol, run_round: Round) -> None:
    """Runs a warm-up round that is not reported, then a round for each line on stdin."""
    run_round()
    protocol.ready()
    while protocol.wait():
        protocol.report(*run_round())


class RoundProtocol:
    """The variant process's end of the pipe. Redirects what libraries print to stderr.

    Create it after the imports and before anything is built: `work_mb` is the peak memory beyond that of the imports.
    On a GPU, memory is what torch has allocated there, and a round ends when the GPU has finished its kernels. On the
    stand-in device the kernels and waits of a round are among its numbers.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.output: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.start = self.cpu = 0.0
        self.counter = Counter() if device == STANDIN else None
        self.before = resident("VmRSS")

    def ready(self) -> None:
        """Reports that the variant is built and warmed up, and the versions of its libraries."""
        imported = [name for name in ("torch", "transformers", "trl", "stable_baselines3") if name in sys.modules]
        self._send({"versions": {name: sys.modules[name].__version__ for name in imported}})

    def wait(self) -> bool:
        """Waits for the next request; returns False when there is none."""
        requested = bool(sys.stdin.readline().strip())
        if self.counter is not None and requested:
            self.counter.begin()
        self.start, self.cpu = time.perf_counter(), time.process_time()
        return requested

    def report(self, tokens: int, phases: dict[str, float], numbers: dict[str, float]) -> None:
        """Reports the round that has just ended."""
        finish(self.device)
        wall, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        memory = {"peak_mb": resident("VmHWM"), "work_mb": resident("VmHWM") - self.before}
        if self.counter is not None:
            numbers = numbers | self.counter.end()
        if self.device == "cuda":
            memory = dict.fromkeys(memory, torch.cuda.max_memory_allocated() / 2**20)
        self._send({"tokens": tokens, "seconds": wall, "cpu": cpu, "phases": phases, "numbers": numbers, **memory})

    def _send(self, content: Mapping[str, object]) -> None:
        print(json.dumps(content), file=self.output, flush=True)


def finish(device: str) -> None:
    """Waits until the GPU has finished its kernels."""
    if device == "cuda":
        torch.cuda.synchronize()


def resident(kind: str) -> float:
    """Resident memory in MB, current (VmRSS) or peak (VmHWM); nan where there is no /proc.

    `resource.getrusage` would include the memory of the parent process.
    """
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(kind)), float("nan"))
