"""Single files: whole or as they were, whichever operation fails; links are replaced; errors name the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from tokenizers import Tokenizer, models

from agents import files
from agents.files import atomic
from tests.helpers.storage import Killed, operations_fail


def count_operations(folder: Path) -> int:
    """Number of operations of a write over an earlier file."""
    (folder / "counted").write_text("old")
    with operations_fail() as log:
        files.write_text(folder / "counted", "new", sync=True)
    return len(log)


@pytest.mark.parametrize("kill", [False, True], ids=["full disk", "killed"])
def test_a_file_is_as_it_was_or_whole(kill: bool, tmp_path: Path) -> None:
    """At each operation. A full disk is a StorageError that names the file; the next write succeeds."""
    count = count_operations(tmp_path)
    assert count == 3  # write, sync, rename
    for at in range(count):
        path = tmp_path / f"{at}.txt"
        path.write_text("old")
        with (
            operations_fail(at, kill),
            pytest.raises(Killed if kill else files.StorageError, match=None if kill else path.name),
        ):
            files.write_text(path, "new" * 1000, sync=True)
        assert path.read_text() == "old"
        files.write_text(path, "new")
        assert path.read_text() == "new"
    assert {p.name for p in tmp_path.iterdir()} == {"counted", *(f"{at}.txt" for at in range(count))}


def test_an_error_in_the_writer_leaves_nothing(tmp_path: Path) -> None:
    """Its own exception is raised, and no file is left at the side."""

    def fail(new: Path) -> None:
        new.write_text("half", encoding="utf-8")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        files.write_file(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "full"), SafetensorError("full"), Exception("full (os error 28)")])
def test_errors_of_libraries_are_storage_errors(error: Exception, tmp_path: Path) -> None:
    """Also those of safetensors and tokenizers, which are no OSError."""

    def fail(new: Path) -> None:
        raise error

    with pytest.raises(files.StorageError, match=r"Could not write '.*a': full.* What was written before is whole\."):
        files.write_file(tmp_path / "a", fail)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a device of Linux")
def test_the_error_of_tokenizers_is_known() -> None:
    """It has no class of its own: it is told by its text."""
    with pytest.raises(files.StorageError, match="Could not write '/dev/full': No space left on device"):
        atomic.perform("write", Path("/dev/full"), lambda: Tokenizer(models.WordLevel()).save("/dev/full"))


def test_links_are_not_written_through(tmp_path: Path) -> None:
    """Neither a link of the name, nor one of the name at the side."""
    (tmp_path / "theirs").write_text("theirs")
    for name in ("a", ".a.new"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    files.write_text(tmp_path / "a", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "a").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()


def test_a_file_at_the_side_is_hidden(tmp_path: Path) -> None:
    """So that a file NAME.new of somebody else is not touched."""
    (tmp_path / "a.new").write_text("theirs")
    files.write_text(tmp_path / "a", "mine")
    assert (tmp_path / "a.new").read_text() == "theirs"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_a_storage_error(tmp_path: Path) -> None:
    """A real error of the system, not an injected one."""
    tmp_path.chmod(0o500)
    with pytest.raises(files.StorageError, match="Could not write .*: Permission denied"):
        files.write_text(tmp_path / "a", "")


def test_a_missing_folder_and_a_folder_of_the_name_are_storage_errors(tmp_path: Path) -> None:
    """The message names the file and the reason."""
    with pytest.raises(files.StorageError, match=r"Could not write '.*nowhere/a': No such file or directory"):
        files.write_text(tmp_path / "nowhere" / "a", "")
    (tmp_path / "b").mkdir()
    with pytest.raises(files.StorageError, match=r"Could not rename '.*b': Is a directory"):
        files.write_text(tmp_path / "b", "")
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@given(text=st.text())
def test_any_text_is_written(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In UTF-8, with line feeds as they are."""
    path = tmp_path_factory.mktemp("text") / "a.txt"
    files.write_text(path, text)
    assert path.read_bytes() == text.encode("utf-8", errors="replace")


def test_remove_takes_files_folders_links_and_nothing(tmp_path: Path) -> None:
    """A link is removed, and not what it leads to."""
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    files.remove(tmp_path / "link")
    assert (tmp_path / "folder" / "below").is_dir()
    for name in ("folder", "nothing"):
        files.remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
