"""`failed.json` of a trial: the error that ended its training. A trial that begins or resumes removes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from agents import Agent, Diverged, files
from agents.training import rank, run_on_rank0
from experiments.errors import paragraph
from experiments.library_agent import LibraryAgent

FAILED = "failed.json"


class TrialFailure(NamedTuple):
    """Why a trial has not finished.

    Attributes:
        num_updates: how many updates it had.
        diverged: whether its policy or its gradients were not finite.
        text: of the error, a paragraph.
    """

    num_updates: int
    diverged: bool
    text: str

    @property
    def event(self) -> str:
        """What happened, and when."""
        updates = "1 update" if self.num_updates == 1 else f"{self.num_updates:,} updates"
        return f"{'diverged' if self.diverged else 'failed'} after {updates}"


@contextmanager
def keeps_failure(folder: Path, agent: Agent | LibraryAgent) -> Iterator[None]:
    """Writes the error that ends its block to the folder of a trial, for those who look at the trial afterwards.

    A stop by a signal is no failure: the trial is resumed.
    """
    run_on_rank0(lambda: files.remove(folder / FAILED))
    try:
        yield
    except Exception as error:
        content = TrialFailure(agent.num_updates, isinstance(error, Diverged), paragraph(error))._asdict()
        if rank() == 0:  # the other ranks may not get here
            with suppress(files.StorageError):  # which may be the error
                files.write_json(folder / FAILED, content)
        raise


def read_failure(folder: Path) -> TrialFailure | None:
    """Returns why a trial failed; None if that is not known.

    Raises:
        DamagedFile: the file was cut off or changed.
    """
    path = folder / FAILED
    if not path.is_file():
        return None
    content = files.read_json(path)
    files.check_types(path, content, {"num_updates": int, "diverged": bool, "text": str})
    return TrialFailure(content["num_updates"], content["diverged"], content["text"])
