"""Folders: the earlier version or the new one is read, whichever operation fails; files of others stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agents import files
from tests.helpers.storage import Killed, content, operations_fail


def fill(text: str, *names: str) -> Callable[[Path], None]:
    """Writes `text` into files of these names."""

    def write(new: Path) -> None:
        for name in names or ("a.txt", "sub/b.txt"):
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(f"{text} {name}")

    return write


def read(path: Path) -> str:
    """The text of the newest whole version, which must be all of one version."""
    found = files.newest_whole(path)
    assert found is not None
    texts = {(found[0] / name).read_text().split()[0] for name in files.verify(found[0])["files"]}
    assert len(texts) == 1
    return texts.pop()


@pytest.mark.parametrize("kill", [False, True], ids=["full disk", "killed"])
@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_folder_is_as_it_was_or_whole(before: int, keep: int, kill: bool, tmp_path: Path) -> None:
    """At each operation of a write; the next write, or `finish_folder`, then leaves what an undisturbed one leaves."""
    reference = tmp_path / "whole" / "x"
    for text in range(before):
        files.write_folder(reference, fill(str(text)), keep)
    with operations_fail() as log:
        files.write_folder(reference, fill("new"), keep)
    expected = content(reference.parent)
    for at in range(len(log)):
        path = tmp_path / str(at) / "x"
        for text in range(before):
            files.write_folder(path, fill(str(text)), keep)
        with operations_fail(at, kill), pytest.raises(Killed if kill else files.StorageError):
            files.write_folder(path, fill("new"), keep)
        if files.newest_whole(path) is None:
            assert before == 0 and not (path / "a.txt").exists()
        else:
            assert read(path) in ("new", str(before - 1))
        files.finish_folder(path, keep)
        finished = files.newest_whole(path)
        if finished is not None and read(path) == "new":
            files.remove_versions(path, keep)
            assert content(path.parent) == expected, log[at]
        files.write_folder(path, fill("new"), keep)
        assert read(path) == "new" and not list(path.parent.rglob(".*"))


@pytest.mark.parametrize("keep", [1, 2])
def test_an_error_says_what_could_not_be_done(keep: int, tmp_path: Path) -> None:
    """Each operation of a write over two versions, and of the way back, with the verb of its error."""
    path, verbs = tmp_path / "x", {"make", "write", "sync", "rename", "remove"}
    for text in ("1", "2"):
        files.write_folder(path, fill(text), keep)
    with operations_fail() as log:
        files.write_folder(path, fill("3"), keep)
    with operations_fail() as back:
        files.promote(path, tmp_path / "x.1" if keep == 2 else path)
    assert {line.split()[0] for line in log} == verbs
    assert {line.split()[0] for line in back} == ({"remove", "rename"} if keep == 2 else set())
    for at in range(len(log)):
        with operations_fail(at) as done, pytest.raises(files.StorageError, match="No space left") as error:
            files.write_folder(path, fill("4"), keep)
        verb, name = done[at].split()
        assert str(error.value).startswith(f"Could not {verb} ") and f"{name}': " in str(error.value)
        files.finish_folder(path, keep)


def test_versions_are_kept_in_order(tmp_path: Path) -> None:
    """The newest has the name; the oldest beyond `keep` is removed."""
    for text in range(5):
        files.write_folder(tmp_path / "x", fill(str(text)), keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.1", "x.2"]
    assert [(tmp_path / name / "a.txt").read_text()[0] for name in ("x", "x.1", "x.2")] == ["4", "3", "2"]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "emptied": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["a.txt", "sub/b.txt", files.MANIFEST])
def test_a_damaged_version_is_passed_over(name: str, damage: str, tmp_path: Path) -> None:
    """The one before is read, and the reason names the file; with no other version that is the error."""
    path = tmp_path / "x"
    for text in ("old", "new"):
        files.write_folder(path, fill(text), keep=2)
    DAMAGES[damage](path / name)
    if damage == "longer" and name == files.MANIFEST:
        assert read(path) == "new"  # white space
        return
    found, passed_over = files.newest_whole(path) or (None, [])
    assert found == tmp_path / "x.1" and len(passed_over) == 1 and str(path / name) in passed_over[0]
    files.remove(tmp_path / "x.1")
    with pytest.raises(files.DamagedFile, match=r"No whole version of .* is left: .*") as error:
        files.newest_whole(path)
    assert str(path / name) in str(error.value)
    files.write_folder(path, fill("next"), keep=2)
    assert read(path) == "next"


def test_files_of_others_stay(tmp_path: Path) -> None:
    """With one version: files, links and folders that are not in the manifest; those that are, and are not new, go."""
    path = tmp_path / "x"
    files.write_folder(path, fill("1", "a.txt", "old.txt", "own/c.txt", "shared/d.txt"))
    (path / "theirs.txt").write_text("theirs")
    (path / "shared" / "theirs.txt").write_text("theirs")
    (path / "model.bin").write_text("theirs")
    (path / "deep" / "empty").mkdir(parents=True)
    (path / "link").symlink_to(tmp_path)
    inode = (path / "theirs.txt").stat().st_ino
    files.write_folder(path, fill("2", "a.txt", "e.txt"), replaced=("model*.bin",))
    names = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_relative_to(path / "link")} | {"link"}
    kept = {"theirs.txt", "shared", "shared/theirs.txt", "deep", "deep/empty", "link"}
    assert names == kept | {"a.txt", "e.txt", files.MANIFEST}
    assert (path / "theirs.txt").stat().st_ino == inode and read(path) == "2"


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("theirs", ['{"name": "web app"}', '{"files": []}', "[1]", '"x"', "null"])
def test_a_manifest_of_another_program_is_not_replaced(theirs: str, keep: int, tmp_path: Path) -> None:
    """Nothing is written. Control: what is not JSON, or lacks a field, may be ours, and damaged."""
    path = tmp_path / "x"
    path.mkdir()
    (path / files.MANIFEST).write_text(theirs)
    (path / "a.txt").write_text("theirs")
    before = content(tmp_path)
    with pytest.raises(
        ValueError, match=r"Choose another folder than .*/x': its manifest\.json was written by another"
    ):
        files.write_folder(path, fill("1"), keep)
    files.check_saved(path)  # it is nothing to check
    assert content(tmp_path) == before
    for damaged in ('{"name": "web', '{"folder": "x", "files": {}}', '{"checksum": ""}'):
        (path / files.MANIFEST).write_text(damaged)
        with pytest.raises(files.DamagedFile):
            files.check_saved(path)
        files.write_folder(path, fill("1"), keep)
        assert read(path) == "1"


def test_a_folder_of_another_name_is_no_version(tmp_path: Path) -> None:
    """Somebody saves `agent` and `agent.1`: neither replaces the other, nor is read in its place."""
    files.write_folder(tmp_path / "agent.1", fill("theirs"))
    files.write_folder(tmp_path / "agent", fill("mine"))
    files.write_folder(tmp_path / "agent", fill("mine"))
    assert (read(tmp_path / "agent"), read(tmp_path / "agent.1")) == ("mine", "theirs")
    (tmp_path / "agent" / "a.txt").unlink()
    with pytest.raises(files.DamagedFile, match="No whole version"):
        files.newest_whole(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"'.*agent\.1' is not a version of it"):
        files.write_folder(tmp_path / "agent", fill("mine"), keep=2)
    assert read(tmp_path / "agent.1") == "theirs"


def test_links_inside_are_not_written_through(tmp_path: Path) -> None:
    """A link in the place of the folder, of one inside it, or of a file."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for keep in (1, 2):
        path = tmp_path / f"x{keep}"
        path.symlink_to(outside)
        files.write_folder(path, fill("1"), keep)
        assert not path.is_symlink() and read(path) == "1" and list(outside.iterdir()) == []
    path = tmp_path / "x1"
    files.remove(path / "sub")
    (path / "sub").symlink_to(outside)
    (path / "a.txt").unlink()
    (outside / "theirs").write_text("theirs")
    (path / "a.txt").symlink_to(outside / "theirs")
    files.write_folder(path, fill("2"))
    assert read(path) == "2" and content(outside) == {"theirs": b"theirs"}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "..\\outside", "C:\\x", ""])
def test_a_manifest_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    """They would be removed with the version that lists them."""
    (tmp_path / "outside").write_text("theirs")
    path = tmp_path / "x"
    path.mkdir()
    manifest = {"folder": "x", "files": {name: {"size": 1, "sha256": ""}}}
    files.write_json(path / files.MANIFEST, manifest)
    with pytest.raises(files.DamagedFile, match=r"manifest\.json must list files of its folder"):
        files.verify(path)
    files.write_folder(path, fill("1"))
    assert (tmp_path / "outside").read_text() == "theirs" and read(path) == "1"


def test_a_folder_may_be_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not renamed, since other processes may be in it."""
    monkeypatch.chdir(tmp_path)
    inode = tmp_path.stat().st_ino
    for text in ("1", "2"):
        files.write_folder(Path(), fill(text))
    assert tmp_path.stat().st_ino == inode and read(Path()) == "2"


def test_a_file_of_the_name_is_a_storage_error(tmp_path: Path) -> None:
    """It is not replaced."""
    (tmp_path / "x").write_text("theirs")
    with pytest.raises(files.StorageError, match="Could not make"):
        files.write_folder(tmp_path / "x", fill("1"))
    assert (tmp_path / "x").read_text() == "theirs"


def test_disks_without_hard_links_work_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are copied then."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no hard links")

    monkeypatch.setattr("agents.files.commit.os.link", refuse)
    for text in ("1", "2"):
        files.write_folder(tmp_path / "x", fill(text))
        assert read(tmp_path / "x") == text
    assert not list(tmp_path.rglob(".*"))


def test_an_error_of_the_writer_leaves_the_earlier_version(tmp_path: Path) -> None:
    """Also Ctrl-C; a folder that was not there is not there afterwards."""

    def fail(new: Path) -> None:
        (new / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_folder(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []
    files.write_folder(tmp_path / "x", fill("1"))
    before = content(tmp_path)
    for keep in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            files.write_folder(tmp_path / "x", fail, keep)
        assert content(tmp_path) == before


def test_a_damaged_version_hides_no_folder_of_another_name(tmp_path: Path) -> None:
    """NAME.1 has no manifest that can be read; NAME.2 is somebody's, and would be replaced by the third version."""
    files.write_folder(tmp_path / "agent.2", fill("theirs"))
    (tmp_path / "agent.1").mkdir()
    (tmp_path / "agent.1" / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"'.*agent\.2' is not a version of it"):
        files.write_folder(tmp_path / "agent", fill("mine"), keep=3)
    assert read(tmp_path / "agent.2") == "theirs"
