"""Tensors in safetensors files, which hold numbers alone: reading one cannot run code."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.files.json_objects import DamagedFile


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors by name, for the `fill` of `write_folder`."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, on the CPU.

    Raises:
        DamagedFile: it is missing, or not such a file.
    """
    try:
        mapped = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedFile(f"{path} must be a safetensors file, but cannot be read: {error}.") from error
    return {name: tensor.clone() for name, tensor in mapped.items()}  # the file may be replaced while they are used
