"""Opens the folder of a run: a new one, or one whose run is resumed; locked as long as the command uses it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agents import Diverged, files
from agents.files import JsonObject
from agents.training import rank, run_on_rank0, world_size
from experiments.changes import changes_of_surroundings, changes_that_mix, changes_without_effect
from experiments.errors import FlagError, NotLearned
from experiments.lock import GUARD, LOCK, locked
from experiments.run_folder import CONFIG, read_saved_config, write_config
from textenv.data import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class RunFlags(DataclassInstance, Protocol):
        """What the flags of a command say of the folder of its run."""

        resume: bool
        take_over: bool
        accept_changes: bool

        @property
        def out(self) -> Path | None: ...


INITIAL = "initial"  # the policy and the baselines that trials start from
ACCEPTED = "accepted_changes.jsonl"
WANDB = "wandb"  # Weights & Biases makes links in its folder


@contextmanager
def opened(config: RunFlags, name: str, file: str = CONFIG) -> Iterator[Path]:
    """Yields the folder of a run, which this process (rank 0) has locked.

    With `resume` the folder may hold a run, begun with the same flags; or nothing, or what a start that did not get far
    has left. Then the run begins, so that one command may be repeated until it has finished. A folder in which nothing
    was trained before an error is removed again. A stop, and an error that is no FlagError, get a note how to resume.

    Args:
        config: the flags of the command.
        name: of a new folder under runs/, if there is no `out`.
        file: the name of the file that holds the flags.

    Raises:
        FlagError: the folder is in use, holds something else, or a run with other flags, data or models.
        DamagedFile: the file with the flags was cut off or changed.
    """
    folder, made = run_on_rank0(lambda: _make_folder(config, name))
    if rank() > 0:
        run_on_rank0(lambda: None)  # returns once rank 0 has written the file
        yield folder
        return
    kept = {path.name for path in folder.iterdir()}
    with locked(folder, config.take_over):
        begins: bool | None = None  # not known yet
        try:
            begins = run_on_rank0(lambda: _begin_or_resume(config, folder, file))
            yield folder
        except BaseException as error:
            refused = isinstance(error, Exception) and begins is not False and world_size() == 1
            if refused and not _contents(folder) - {file, INITIAL}:
                _remove(folder, kept, made)
            elif begins is not None and not isinstance(error, FlagError):
                error.add_note(_how_to_resume(error, folder))
            raise


def _how_to_resume(error: BaseException, folder: Path) -> str:
    command = resume_command(folder)
    if isinstance(error, Diverged | NotLearned):  # with the same settings it would fail again
        other = "a lower --learning-rate" if isinstance(error, Diverged) else "more --epochs"
        return f"To resume with other settings: {command} --accept-changes, and for example {other}"
    return f"To resume: {command}"


def resume_command(folder: Path) -> str:
    """The command line that resumes this command's run: its own arguments, and `--out FOLDER --resume`."""
    own = sys.argv[1:]
    if Path(sys.argv[0]).parts[-2:] != ("experiments", "__main__.py"):  # it was called from Python
        return f"the same settings, with --out {shlex.quote(str(folder))} --resume"
    at_once = {"--resume", "--take-over"}
    kept = [
        argument
        for before, argument in zip(["", *own], own, strict=False)
        if argument not in at_once and "--out" not in (before, argument) and not argument.startswith("--out=")
    ]
    start = "accelerate launch ... -m experiments" if world_size() > 1 else "python -m experiments"
    return f"{start} {shlex.join([*kept, '--out', str(folder), '--resume'])}"


def _make_folder(config: RunFlags, name: str) -> tuple[Path, list[Path]]:
    """Returns the folder of a run, and the folders that it has made: that one and those above it, innermost first.

    Raises:
        FlagError: it cannot be made; or it is not empty, and there is no `resume`.
    """
    if config.out is None:
        if config.resume:
            raise FlagError("--resume needs --out: pass the folder of the run.")
        base = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        candidates = (base if i == 1 else base.with_name(f"{base.name}-{i}") for i in range(1, 1000))
        for folder in candidates:
            made = _missing(folder)
            try:
                folder.mkdir(parents=True)
                return folder, made
            except FileExistsError:  # of a command that was started in the same second
                continue
            except OSError as error:
                raise FlagError(f"{str(folder)!r} cannot be made: {error.strerror}. Choose --out.") from error
        raise FlagError(f"{str(base)!r} is taken; choose --out.")
    folder = Path(config.out)
    made = _missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise FlagError(f"--out {str(folder)!r} cannot be made: {error}") from error
    _check_empty(config, folder)  # before the lock, which would be the first file in a folder of something else
    return folder, made


def _missing(folder: Path) -> list[Path]:
    """The folders that must be made for a folder to exist, itself included, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _check_empty(config: RunFlags, folder: Path) -> None:
    """Raises a FlagError if there is something in a folder, and no `resume`."""
    if not config.resume and _contents(folder):
        raise FlagError(
            f"--out {str(folder)!r} is not empty: add --resume to continue the run in it, or choose another folder."
        )


def _begin_or_resume(config: RunFlags, folder: Path, file: str) -> bool:
    """Checks a folder that is locked, and writes the file with the flags if its run begins; returns whether it does."""
    check_links(folder)
    _check_empty(config, folder)  # again: another process may have used it until the lock was free
    if contents := _contents(folder):
        try:
            _check_changes(config, folder, read_saved_config(folder, file))
            return False
        except files.DamagedFile as error:
            if file not in contents:
                raise FlagError(
                    f"--out {str(folder)!r} is not empty and holds no run to resume (no {file}); choose another folder."
                ) from error
            if contents - {file, INITIAL}:
                raise files.DamagedFile(f"{error} Restore it from a copy, or choose another folder.") from error
            print(printable(f"{error} Nothing was trained yet: the run begins."), file=sys.stderr)
            files.remove(folder / INITIAL)  # with other flags, perhaps
    write_config(config, folder, file)
    return True


def _check_changes(config: RunFlags, folder: Path, saved: JsonObject) -> None:
    for change in changes_of_surroundings(config, saved):
        print(printable(f"{folder}: since the run began: {change}"), file=sys.stderr)
    if not (mixed := changes_that_mix(config, saved)):
        return
    text = " ".join(mixed)
    if not config.accept_changes:
        raise FlagError(
            f"--resume: since the run in {str(folder)!r} began: {text} To continue would mix two runs: restore what "
            "was, choose another --out, or add --accept-changes."
        )
    if without_effect := changes_without_effect(config, saved):
        raise FlagError(
            f"--accept-changes: {' '.join(without_effect)} Policy and baselines in {str(folder)!r} have what they "
            "were made with: restore what was, or choose another --out."
        )
    print(printable(f"{folder}: accepted changes since the run began: {text}"), file=sys.stderr)
    rows = files.Rows(folder / ACCEPTED)
    rows.append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "changes": mixed})
    rows.close()


def check_links(folder: Path) -> None:
    """Raises a FlagError if a folder contains a link, or a pipe or the like. (The folder itself may be a link.)"""
    for place, folders, names in os.walk(folder):
        for entry in (*folders, *names):
            path = Path(place) / entry
            if path.is_symlink():
                raise FlagError(
                    f"{str(path)!r} is a link. What is written into a run folder stays in it: replace the link by what "
                    "it leads to."
                )
            if not (path.is_file() or path.is_dir()):
                raise FlagError(f"{str(path)!r} is neither a file nor a folder: remove it.")
        if WANDB in folders:
            folders.remove(WANDB)


def _contents(folder: Path) -> set[str]:
    """The names in a folder, without the lock and without files that a killed process was about to rename."""
    names = {path.name for path in folder.iterdir()} - {LOCK, GUARD}
    return {name for name in names if not (name.startswith(".") and name.endswith(".new"))}


def _remove(folder: Path, kept: set[str], made: list[Path]) -> None:
    """Removes what a start has left in a folder but for what was there before, and the folders that it has made."""
    if folder in made:
        files.remove(folder)
        with suppress(OSError):  # another run has begun beside this one
            for path in made[1:]:
                path.rmdir()
        return
    for path in list(folder.iterdir()):
        if path.name not in {*kept, LOCK, GUARD}:
            files.remove(path)
