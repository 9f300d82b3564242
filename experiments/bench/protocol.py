"""What the bench and a variant process say to each other."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch


class RoundResult(NamedTuple):
    """A round: response tokens, seconds by phase, and other numbers worth telling."""

    tokens: int
    phases: dict[str, float]
    numbers: dict[str, float] = {}  # noqa: RUF012 (a default that nobody writes to)


Round = Callable[[], RoundResult]  # plays one


def serve(protocol: RoundProtocol, play: Round) -> None:
    """Play a round for each line, after one that is not counted."""
    play()
    protocol.ready()
    while protocol.wait():
        protocol.report(*play())


class RoundProtocol:
    """The conversation with whoever asked for the rounds. What libraries print goes to stderr.

    Made when all is imported and nothing is built: `work_mb` is what came on top at most. On a GPU memory is what torch
    holds there, and a round has ended when the GPU has done what it was asked.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.output: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.start = self.cpu = 0.0
        self.before = resident("VmRSS")

    def ready(self) -> None:
        """Built and warm; tells with which versions."""
        imported = [name for name in ("torch", "transformers", "trl", "stable_baselines3") if name in sys.modules]
        self._say({"versions": {name: sys.modules[name].__version__ for name in imported}})

    def wait(self) -> bool:
        """Until the next round is asked for; False when there is none."""
        asked = bool(sys.stdin.readline().strip())
        self.start, self.cpu = time.perf_counter(), time.process_time()
        return asked

    def report(self, tokens: int, phases: dict[str, float], numbers: dict[str, float]) -> None:
        """A round has ended."""
        finish(self.device)
        wall, cpu = time.perf_counter() - self.start, time.process_time() - self.cpu
        memory = {"peak_mb": resident("VmHWM"), "work_mb": resident("VmHWM") - self.before}
        if self.device == "cuda":
            memory = dict.fromkeys(memory, torch.cuda.max_memory_allocated() / 2**20)
        self._say({"tokens": tokens, "seconds": wall, "cpu": cpu, "phases": phases, "numbers": numbers, **memory})

    def _say(self, content: dict[str, Any]) -> None:
        print(json.dumps(content), file=self.output, flush=True)


def finish(device: str) -> None:
    """Wait until a GPU has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def resident(kind: str) -> float:
    """Memory in MB, now (VmRSS) or at most (VmHWM); nan where there is no /proc.

    `resource.getrusage` would count what the process that started this one held.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(kind)), float("nan"))
