"""The format of saved files: the field `format_version` of `config.json`, `agent.json` and `policy.json`.

    format    written by
    1         textenv 0.1, without a format_version
    2         textenv 0.2: --sampler loop | generate | graph, normalized_objective

Runs and agents of another format are refused. Policies of every earlier format are loaded: later formats of
`policy.json` only added fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import textenv

FORMAT_VERSION = 2
READERS = {1: "textenv 0.1 (commit b8391f7)"}  # the last version that reads each earlier format


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
        ValueError: it holds none; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path} must be a JSON object, but cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got {content!r:.100}.")
    return content


def read_saved(path: Path, oldest: int = FORMAT_VERSION) -> dict[str, Any]:
    """Reads a saved file and checks its format.

    Args:
        path: the file.
        oldest: the oldest format that is read.

    Raises:
        ValueError: not a JSON object, or one of another format; the message names the file.
    """
    content = read_object(path)
    check_format(path, content, oldest)
    return content


def check_format(path: Path, content: dict[str, Any], oldest: int = FORMAT_VERSION) -> None:
    """Checks that this version reads the format of a saved file.

    Args:
        path: the file, for the error message.
        content: the file's parsed content.
        oldest: the oldest format that is read.

    Raises:
        ValueError: the format is another one; the message names the version that reads it.
    """
    found = content.get("format_version", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"{path}: format_version must be an integer, at least 1, got {found!r}.")
    if oldest <= found <= FORMAT_VERSION:
        return
    reader = READERS.get(found, "a later version of textenv")
    formats = f"format {FORMAT_VERSION}" if oldest == FORMAT_VERSION else f"formats {oldest} to {FORMAT_VERSION}"
    raise ValueError(
        f"{path} is in format {found}, which {reader} reads; this is textenv {textenv.__version__}, which reads "
        f"{formats}."
    )
