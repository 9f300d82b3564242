"""A mutation run by mutmut: `make mutation`, see experiments/results/mutation/README.md.

Without names of mutants it runs a random sample of all mutants, which `--seed` determines. What is printed and written
is about the mutants that were selected; those of earlier calls are not run again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.helpers.paths import ROOT

RESULTS = ROOT / "experiments" / "results" / "mutation"
# exit codes of pytest, as mutmut keeps them; any other is a timeout or a crash, which kills the mutant too
VERDICTS = {0: "survived", 1: "killed", 3: "killed", 5: "no tests", 33: "no tests", None: "not run"}
GENERATE = "agents.functional.kl.*"  # a small module: with it mutmut generates all mutants and maps tests to functions


def mutmut(*arguments: str, show: bool = False) -> str:
    """Runs mutmut in the checkout; returns what it printed, or with `show` prints it as it comes."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    found = subprocess.run(command, cwd=ROOT, stdout=None if show else subprocess.PIPE, text=True)
    if found.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed.")
    return found.stdout or ""


def verdicts() -> dict[str, str]:
    """The verdict on each mutant, by its name."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "mutants").rglob("*.py.meta")):
        for name, code in json.loads(path.read_text())["exit_code_by_key"].items():
            found[name] = VERDICTS.get(code, "killed by timeout or crash")
    return found


def select(patterns: list[str], sample: int, seed: int) -> list[str]:
    """The mutants whose names match a pattern; without patterns a random sample of all mutants."""
    names = sorted(verdicts())
    if patterns:
        return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return sorted(random.Random(seed).sample(names, min(sample, len(names))))


def report(names: list[str], title: str) -> str:
    """How many of the mutants were killed, and the difference that each survivor makes."""
    known = verdicts()
    counts = Counter(known[name] for name in names)
    done = len(names) - counts["not run"]
    killed = sum(number for verdict, number in counts.items() if verdict.startswith("killed"))
    lines = [title, f"killed {killed} of {done} ({killed / max(1, done):.1%}): " + str(dict(counts)), ""]
    for name in names:
        if known[name] in ("survived", "no tests"):
            lines += [mutmut("show", name).rstrip(), ""]
    return "\n".join(lines)


def main() -> None:
    """Runs the mutants that the command line selects, and writes `NAME.txt` to experiments/results/mutation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mutants", nargs="*", help="patterns of names, e.g. 'agents.ppo.*'; by default a sample")
    parser.add_argument("--sample", type=int, default=400, help="mutants of the random sample")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at the same time")
    parser.add_argument("--name", default="sample", help="name of the file of results")
    arguments = parser.parse_args()
    if shutil.which(str(Path(sys.executable).with_name("mutmut"))) is None:
        raise SystemExit('mutmut is not installed: pip install -e ".[dev]"')
    jobs = ("--max-children", str(arguments.jobs))
    mutmut("run", *jobs, GENERATE, show=True)
    names = select(arguments.mutants, arguments.sample, arguments.seed)
    what = " ".join(arguments.mutants) or f"a sample of {len(verdicts())}, seed {arguments.seed}"
    if waiting := [name for name in names if verdicts()[name] == "not run"]:
        start = time.monotonic()
        mutmut("run", *jobs, *waiting, show=True)
        print(f"{(time.monotonic() - start) / len(waiting):.1f} s for each mutant")
    text = report(names, f"{len(names)} mutants: {what}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{arguments.name}.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
