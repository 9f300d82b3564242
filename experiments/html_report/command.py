"""report: writes the page of runs."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from agents.files import DamagedFile
from experiments.errors import FlagError
from experiments.html_report.page import PAGE, write_page
from experiments.html_report.runs import NotEvaluated, read_runs
from experiments.html_report.serve import PageServer
from experiments.ranges import check_flags
from textenv.data import printable

SUFFIXES = (".html", ".htm")
PORT = 8000


@dataclass
class ReportConfig:
    """Write one self-contained HTML page of a run, of a comparison, or of several of the same task."""

    runs: Annotated[list[Path], tyro.conf.Positional]
    """Folders of `train` and `compare`; a run may still be training."""
    out: Path | None = None
    """The HTML file; by default report.html in the folder of the run, or in the working directory if there are several
    runs."""
    serve: bool = False
    """Serve the page to a browser on this machine instead of writing it, anew while a run trains; Ctrl-C ends it."""
    port: int | None = None
    """With --serve: the port, by default 8000; 0: a free one."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise FlagError("name the folder of a run.")
        if self.serve and self.out is not None:
            raise FlagError("--out names a file, and --serve writes none: give one of them.")
        check_flags(self)


def report_runs(config: ReportConfig) -> None:
    """Writes the page and prints its path, or serves it until Ctrl-C.

    Raises:
        FlagError: --port without --serve; a folder is named twice, or holds no run, or runs of another task; the file
            to write is no page.
        DamagedFile: a file of a run that the page needs was cut off or changed.
    """
    places = Counter(folder.resolve() for folder in config.runs)
    if twice := [folder for folder, count in places.items() if count > 1]:
        raise FlagError(f"a folder must be named once, got {str(twice[0])!r} {places[twice[0]]} times.")
    if config.serve:
        with suppress(NotEvaluated, DamagedFile):  # which a run that trains may overcome
            read_runs(config.runs)
        with PageServer(config.runs, PORT if config.port is None else config.port) as server:
            print(f"serving {server.url} (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        return
    if config.port is not None:
        raise FlagError("--port is where --serve shows the page: add --serve.")
    default = (config.runs[0] if len(config.runs) == 1 else Path()) / PAGE
    out = default if config.out is None else config.out
    if out.is_dir() or out.suffix.lower() not in SUFFIXES:
        kind = "the folder " if out.is_dir() else ""
        raise FlagError(f"--out must be a file whose name ends with {' or '.join(SUFFIXES)}, got {kind}{str(out)!r}.")
    for note in write_page(config.runs, out):
        print(printable(note), file=sys.stderr)
    print(f"written to {printable(out)}")
