"""Runs each variant in a process of its own and alternates their rounds, so that all meet the same conditions."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from agents.files import JsonObject
from experiments.errors import FlagError


class VariantProcess:
    """A variant in a process of its own, which runs a round on request.

    Args:
        name: the variant's name in `variant_main.py`.
        work: the work of a round, a dataclass.
        peers: the virtual environment of the other libraries.
        threads: number of threads of the process.
    """

    def __init__(self, name: str, work: Any, peers: Path, threads: int) -> None:
        python, paths = sys.executable, [str(Path(__file__).parents[2])]
        if name.startswith("trl"):
            python = str(peers / "bin" / "python")
        if name == "trl ppo":
            paths.insert(0, str(peers / "trl-1.12"))
        if not name.startswith("trl") and "PYTHONPATH" in os.environ:
            paths.append(os.environ["PYTHONPATH"])
        environment = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        self.name, self.rounds = name, list[JsonObject]()
        self.stderr = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (an unread pipe would fill up and block)
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", "experiments.bench.variant_main", name, json.dumps(dataclasses.asdict(work)), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            encoding="utf-8",
            env=os.environ | environment,
        )
        self.versions = self._receive()["versions"]
        self.start_seconds = time.perf_counter() - started

    def run_round(self) -> None:
        """Runs a round and records its result."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(self._receive())

    def _receive(self) -> JsonObject:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stderr.seek(0)
            lines = self.stderr.read().splitlines()
            raise FlagError(f"{self.name} failed: {lines[-1] if lines else 'no message on stderr'}")
        message: JsonObject = json.loads(line)
        return message

    def stop(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.stderr.close()


def take_turns(names: Sequence[str], work: Any, rounds: int, peers: Path, threads: int) -> JsonObject:
    """Runs the first round of every variant, then the second of every variant, and so on; one process at a time.

    Returns:
        For each variant the medians over its rounds, the `rounds`, its `versions`, and `start_seconds`: from the start
        of its process to the end of its warm-up round.
    """
    with ExitStack() as stack:
        variants = []
        for name in tqdm(names, desc="starting", leave=False):
            variants.append(VariantProcess(name, work, peers, threads))
            stack.callback(variants[-1].stop)
        for _ in tqdm(range(rounds), desc="rounds", leave=False):
            for variant in variants:
                variant.run_round()
        return {
            variant.name: medians(variant.rounds)
            | {
                "start_seconds": variant.start_seconds,
                "versions": variant.versions,
                "rounds": [{name: r[name] for name in ("tokens", "seconds", "cpu")} for r in variant.rounds],
            }
            for variant in variants
        }


def medians(rounds: Sequence[JsonObject]) -> JsonObject:
    """Returns the medians over the rounds of a variant; for memory and the other numbers, the maxima."""
    phases = {name: float(np.median([r["phases"][name] for r in rounds])) for name in rounds[0]["phases"]}
    scalars = {name: float(np.median([r[name] for r in rounds])) for name in ("tokens", "seconds", "cpu")}
    memory = {name: max(r[name] for r in rounds) for name in ("peak_mb", "work_mb")}
    numbers = {name: max(r["numbers"][name] for r in rounds) for name in rounds[0]["numbers"]}
    rates = {
        "tokens_per_second": float(np.median([r["tokens"] / r["seconds"] for r in rounds])),
        "tokens_per_cpu_second": float(np.median([r["tokens"] / r["cpu"] for r in rounds])),
    }
    return scalars | rates | memory | numbers | {"phases": phases}


def share_of_a_core(results: Any) -> float:
    """CPU seconds over seconds, over all timed results of a part; below 1, other processes delayed the measurement."""
    timed = list(_timed(results))
    return sum(row["cpu"] for row in timed) / sum(row["seconds"] for row in timed)


def _timed(results: Any) -> Iterator[dict[str, float]]:
    if isinstance(results, dict):
        if "cpu" in results:
            yield results
        for name, value in results.items():
            if name != "rounds":  # already counted in the totals of the variant
                yield from _timed(value)
