"""Variants in processes of their own, which take turns: rounds of all are played under the same conditions."""

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

from experiments.errors import FlagError


class VariantProcess:
    """A variant in a process of its own, which plays a round when it is asked to.

    Args:
        name: of the variant, as `worker.py` knows it.
        work: what it works on, a dataclass.
        peers: the virtual environment of those that are not ours.
        threads: of the process.
    """

    def __init__(self, name: str, work: Any, peers: Path, threads: int) -> None:
        python, paths = sys.executable, [str(Path(__file__).parents[2])]
        if name.startswith("trl"):
            python = str(peers / "bin" / "python")
        if name == "trl ppo":
            paths.insert(0, str(peers / "trl-1.12"))
        if not name.startswith("trl") and "PYTHONPATH" in os.environ:
            paths.append(os.environ["PYTHONPATH"])
        environment = {"PYTHONPATH": ":".join(paths), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
        self.name, self.rounds = name, list[dict[str, Any]]()
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (a pipe that nobody reads would fill up)
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [python, "-m", "experiments.bench.worker", name, json.dumps(dataclasses.asdict(work)), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
            text=True,
            env=os.environ | environment,
        )
        self.versions = self._answer()["versions"]
        self.start_seconds = time.perf_counter() - began

    def play(self) -> None:
        """One round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rounds.append(self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.said.seek(0)
            lines = self.said.read().splitlines()
            raise FlagError(f"{self.name} failed: {lines[-1] if lines else 'without a word'}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """No more rounds."""
        self.process.kill()
        self.process.communicate()
        self.said.close()


def take_turns(names: Sequence[str], work: Any, rounds: int, peers: Path, threads: int) -> dict[str, Any]:
    """Every variant plays a round, then every variant the next one; one process computes at a time.

    Returns:
        By variant the medians of its rounds, the `rounds` themselves, its `versions`, and `start_seconds`, from its
        process's start to the end of the round that warms it up.
    """
    with ExitStack() as stack:
        variants = []
        for name in tqdm(names, desc="starting", leave=False):
            variants.append(VariantProcess(name, work, peers, threads))
            stack.callback(variants[-1].stop)
        for _ in tqdm(range(rounds), desc="rounds", leave=False):
            for variant in variants:
                variant.play()
        return {
            variant.name: medians(variant.rounds)
            | {
                "start_seconds": variant.start_seconds,
                "versions": variant.versions,
                "rounds": [{name: r[name] for name in ("tokens", "seconds", "cpu")} for r in variant.rounds],
            }
            for variant in variants
        }


def medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of a variant's rounds; of memory and of other numbers the largest."""
    phases = {name: float(np.median([r["phases"][name] for r in rounds])) for name in rounds[0]["phases"]}
    told = {name: float(np.median([r[name] for r in rounds])) for name in ("tokens", "seconds", "cpu")}
    memory = {name: max(r[name] for r in rounds) for name in ("peak_mb", "work_mb")}
    numbers = {name: max(r["numbers"][name] for r in rounds) for name in rounds[0]["numbers"]}
    rates = {
        "tokens_per_second": float(np.median([r["tokens"] / r["seconds"] for r in rounds])),
        "tokens_per_cpu_second": float(np.median([r["tokens"] / r["cpu"] for r in rounds])),
    }
    return told | rates | memory | numbers | {"phases": phases}


def share_of_a_core(found: Any) -> float:
    """CPU seconds over seconds, of all in a part's results that was timed: below 1 a thread was kept waiting."""
    timed = list(_timed(found))
    return sum(seen["cpu"] for seen in timed) / sum(seen["seconds"] for seen in timed)


def _timed(found: Any) -> Iterator[dict[str, float]]:
    if isinstance(found, dict):
        if "cpu" in found:
            yield found
        for name, value in found.items():
            if name != "rounds":  # of which that was made
                yield from _timed(value)
