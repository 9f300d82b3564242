"""`python -m experiments.peers {trl,torchrl,sb3}`: measures one library, in an environment that has it.

Writes `peers-NAME.json`, and `README.md` from the JSON of all libraries that were measured.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from agents.files import JsonObject, read_json, write_json
from experiments.peers.row import Row, measure
from experiments.peers.table import page
from experiments.peers.toys import BETA

LIBRARIES = {"trl": "trl", "torchrl": "torchrl", "sb3": "stable-baselines3"}
OUT = Path("experiments/results/verification")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m experiments.peers", description=__doc__)
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    arguments = parser.parse_args(argv)
    rows: Callable[[], list[Row]] = import_module(f"experiments.peers.{arguments.library}_rows").rows
    write(arguments.library, measure_all(rows()), arguments.out)


def measure_all(rows: Sequence[Row]) -> list[JsonObject]:
    """Measures each row, and reports progress."""
    found = []
    for number, row in enumerate(rows, start=1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, about what is no matter here
            found.append(measure(row))
        print(f"{number}/{len(rows)} {row.setting}: {found[-1]['seconds']:.0f} s", file=sys.stderr)
    return found


def write(library: str, rows: Sequence[JsonObject], folder: Path) -> None:
    """Writes what was measured of a library, and the page of all."""
    folder.mkdir(parents=True, exist_ok=True)
    names = (LIBRARIES[library], "torch", "numpy")
    content = {
        "command": f"python -m experiments.peers {library}",
        "versions": {name: version(name) for name in names},
        "rows": list(rows),
    }
    write_json(folder / f"peers-{library}.json", content)
    paths = [folder / f"peers-{name}.json" for name in LIBRARIES]
    measured = [read_json(path) for path in paths if path.is_file()]
    (folder / "README.md").write_text(page(measured, BETA), encoding="utf-8")


if __name__ == "__main__":
    main()
