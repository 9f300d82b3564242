"""Writes and reads the files of a run: a crash, a full disk or a flipped bit never loses or changes one in silence."""

from agents.files.atomic import StorageError, read_bytes, remove, resolved, storage_errors, write_file, write_text
from agents.files.commit import promote, remove_versions
from agents.files.exclusive import create_json
from agents.files.folders import check_saved, describe, finish_folder, newest_whole, verify, write_folder
from agents.files.json_objects import (
    DamagedFile,
    JsonObject,
    check_names,
    check_types,
    check_unchanged,
    finite,
    parse,
    read_json,
    read_object,
    write_json,
)
from agents.files.manifest import MANIFEST, read_manifest
from agents.files.rows import Rows, parse_rows, read_rows
from agents.files.tensors import read_tensors, write_tensors

__all__ = [
    "MANIFEST",
    "DamagedFile",
    "JsonObject",
    "Rows",
    "StorageError",
    "check_names",
    "check_saved",
    "check_types",
    "check_unchanged",
    "create_json",
    "describe",
    "finish_folder",
    "finite",
    "newest_whole",
    "parse",
    "parse_rows",
    "promote",
    "read_bytes",
    "read_json",
    "read_manifest",
    "read_object",
    "read_rows",
    "read_tensors",
    "remove",
    "remove_versions",
    "resolved",
    "storage_errors",
    "verify",
    "write_file",
    "write_folder",
    "write_json",
    "write_tensors",
    "write_text",
]
