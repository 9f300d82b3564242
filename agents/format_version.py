"""The format of saved files, in their field `format_version`.

    of a run           config.json; the manifest.json of its checkpoints
    of an agent        agent.json
    of a policy        policy.json
    of a reward model  training.json, as config.json of a run; the training_state.json of its checkpoints

    format    written by
    1         textenv 0.1, without a format_version
    2         textenv 0.2: --sampler loop | generate | graph, normalized_objective
    3         textenv 0.3: manifests and checksums, training_state.safetensors

Runs and agents of another format are refused. Policies of every earlier format are loaded: later formats of
`policy.json` only added fields.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import textenv
from agents.files import MANIFEST, DamagedFile, JsonObject, check_unchanged, newest_whole, read_manifest, read_object

FORMAT_VERSION = 3
FIRST_WITH_CHECKSUMS = 3
# the last version that reads each earlier format
READERS = {1: "textenv 0.1 (commit b8391f7)", 2: "textenv 0.2 (commit 13092f1)"}


def read_saved(path: Path, oldest: int = FORMAT_VERSION) -> JsonObject:
    """Reads a saved file, and checks its format and its checksum.

    Args:
        path: the file.
        oldest: the oldest format that is read.

    Raises:
        DamagedFile: not a JSON object, or changed after it was written; the message names the file.
        ValueError: another format; the message names the file.
    """
    content = read_object(path)
    if check_format(path, content, oldest) >= FIRST_WITH_CHECKSUMS:
        check_unchanged(path, content)
    return content


def check_format(path: Path, content: Mapping[str, object], oldest: int = FORMAT_VERSION) -> int:
    """Checks that this version reads the format of a saved file, and returns the format.

    Args:
        path: the file, for the error message.
        content: the file's parsed content.
        oldest: the oldest format that is read.

    Raises:
        ValueError: the format is another one; the message names the version that reads it.
    """
    found = content.get("format_version", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{path}: format_version must be an integer, at least 1, got {found!r:.100}.")
    if oldest <= found <= FORMAT_VERSION:
        return found
    reader = READERS.get(found, "a later version of textenv")
    formats = f"format {FORMAT_VERSION}" if oldest == FORMAT_VERSION else f"formats {oldest} to {FORMAT_VERSION}"
    raise ValueError(
        f"{path} is in format {found}, which {reader} reads; this is textenv {textenv.__version__}, which reads "
        f"{formats}."
    )


def find_saved(folder: Path, name: str, oldest: int = FORMAT_VERSION) -> Path | None:
    """Returns the newest whole version of a folder that holds a saved file; warns if it passed over a newer one.

    Args:
        folder: the folder that was given to `save` or `save_pretrained`.
        name: the saved file, agent.json or policy.json.
        oldest: the oldest format that is read.

    Returns:
        None where the folder holds no such file.

    Raises:
        DamagedFile: no version is whole; the message names the damaged files.
        ValueError: another format; the message names the file.
    """
    if (folder / name).is_file():
        try:
            content = read_object(folder / name)
        except DamagedFile:
            if not (folder / MANIFEST).exists():
                raise
        else:
            found = check_format(folder / name, content, oldest)
            if found < FIRST_WITH_CHECKSUMS and not (folder / MANIFEST).exists():
                return folder
    elif folder.is_dir() and not (folder / MANIFEST).exists() and not (folder / ".new").exists():
        return None
    if (newest := newest_whole(folder)) is None:
        return None
    path, passed_over = newest
    if passed_over:
        warnings.warn(f"{' '.join(passed_over)} {path} is read instead, which is older.", stacklevel=3)
    return path if name in read_manifest(path)["files"] else None
