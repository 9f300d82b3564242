"""What needs a CUDA device, in at most eight minutes: the tests marked `gpu`, then `bench --parts gpu`.

    make gpu
    python -m tests.gpu --out experiments/results/gpu

Writes gpu.json, with the outcome of each test, and bench.json and bench.txt. The exit code is 1 if a test or the bench
fails, or takes longer than its share; 2 where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import torch

TEST_SECONDS, BENCH_SECONDS = 240, 220  # eight minutes, less the start


def run(command: Sequence[str], seconds: float) -> str:
    """Runs a command of this Python; returns "passed", "failed" or "took longer than N seconds"."""
    try:
        done = subprocess.run([sys.executable, "-m", *command], timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:g} seconds"
    return "passed" if done.returncode == 0 else "failed"


def outcomes(report: Path) -> dict[str, str]:
    """The outcome of each test in pytest's junit file: passed, skipped, failure or error. Empty without a file."""
    if not report.is_file():
        return {}
    return {
        f"{case.get('classname')}::{case.get('name')}": next((child.tag for child in case), "passed")
        for case in ElementTree.parse(report).iter("testcase")
    }


def examine(marker: str = "gpu", tests: Sequence[str] = ("tests",)) -> dict[str, object]:
    """Runs the tests with a marker; returns how they ended, and the outcome of each."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-m", marker, f"--junitxml={report}", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers"]
        ended = run(["pytest", *tests, *options, "-o", "junit_logging=no"], TEST_SECONDS)
        return {"ended": ended, "tests": outcomes(report)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs both parts, and writes what they found after each; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/gpu"))
    out: Path = parser.parse_args(arguments).out
    if not torch.cuda.is_available():
        print("error: there is no CUDA device: nothing was run.", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    parts = {
        "tests": examine,
        "bench": lambda: {
            "ended": run(["experiments", "bench", "--parts", "gpu", "--rounds", "1", "--out", str(out)], BENCH_SECONDS)
        },
    }
    ended = []
    for name, part in parts.items():
        result = part()
        found[name] = result
        ended.append(result["ended"])
        (out / "gpu.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{name}: {result['ended']}")
    return 0 if set(ended) == {"passed"} else 1


if __name__ == "__main__":
    sys.exit(main())
