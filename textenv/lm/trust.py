"""What a folder may make transformers do, checked before transformers reads the folder.

`trust_remote_code=False` refuses the code that `auto_map` names. The JSON files of a folder can also name quantization
libraries, kernels to download, other folders and pickled weights; those are refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import dynamic_module_utils
from transformers.utils.hub import cached_file

SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json")

REFUSED = {  # key of a file -> what it makes transformers do
    "quantization_config": "import a quantization library",
    "configuration_files": "read another configuration than config.json",
    "fusion_config": "replace the code of layers",
}
KERNELS = {"attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"}

# transformers calls `from_pretrained` of any of its classes that is named here: AutoModel would run code
TOKENIZER_CLASS = re.compile(r"(?!Auto|Rag)\w+Tokenizer(Fast)?|\w+Backend")

CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as Auto; Auto.from_pretrained(FOLDER, '
    'use_safetensors=False).save_pretrained(NEW_FOLDER)"'
)

MERGE = (
    'python -c "from peft import AutoPeftModelForCausalLM as Auto; from textenv.lm import frozen_copy; '
    'frozen_copy(Auto.from_pretrained(FOLDER)).save_pretrained(NEW_FOLDER)"'
)


def check_folder(path: str | PathLike[str], trust_remote_code: bool = False) -> None:
    """Checks the files of a model's or tokenizer's folder, or of a hub id, whose JSON files are downloaded first.

    Args:
        path: a folder or a hub id.
        trust_remote_code: whether the user allows the folder to run code; its weights must be safetensors even so.

    Raises:
        ValueError: a file would make transformers import or run something, or unpickle weights.
    """
    folder = Path(path)
    if _holds_adapter(path):
        raise ValueError(
            f"{str(folder)!r} holds an adapter, and the model that it belongs to, which may be anywhere, is not loaded "
            f"unasked. If you trust that model, merge the two: {MERGE} (for a classifier "
            "AutoPeftModelForSequenceClassification), copy the tokenizer's files there, and pass NEW_FOLDER."
        )
    if (pickles := sorted(folder.glob("pytorch_model*.bin"))) and not any(folder.glob("model*.safetensors")):
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run code when it is loaded: only safetensors are read. To convert a "
            f"model that you trust: {CONVERT}"
        )
    indices = sorted(folder.glob("*.index.json")) if folder.is_dir() else [_find(path, "model.safetensors.index.json")]
    for index in filter(None, indices):
        shards = _read(index).get("weight_map")
        for name in shards.values() if isinstance(shards, dict) else ():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ValueError(f"{index} must name safetensors files of its folder, got {name!r}.")
    for name in SETTINGS:
        if (file := _find(path, name)) is not None:
            for key, value in _items(_read(file)):
                if (effect := _effect(key, value, trust_remote_code)) is not None:
                    raise ValueError(
                        f"{folder / name}: {key!r} = {json.dumps(value):.100} would make transformers {effect}."
                    )


@contextmanager
def never_asking() -> Iterator[None]:
    """Makes transformers refuse code that it would otherwise ask about on the terminal, e.g. of a part of a model."""
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _find(path: str | PathLike[str], name: str) -> Path | None:
    """A file of a folder or, downloaded, of a hub id; None where it has none of this name, or cannot be reached."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    try:
        found = cached_file(
            str(path),
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # transformers tells why when it loads the model
        return None
    return None if found is None else Path(found)


def _holds_adapter(path: str | PathLike[str]) -> bool:
    """Whether a folder or hub id holds an adapter of peft, or only several of them, each in a folder of its own."""
    if _find(path, "adapter_config.json"):
        return True
    folder = Path(path)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return False
    return any(folder.glob("adapter_model.*")) or any(folder.glob("*/adapter_config.json"))


def _effect(key: str, value: object, trust_remote_code: bool) -> str | None:
    """What a setting would make transformers do that nobody has asked for; None if it is harmless."""
    if key == "transformers_weights" and value and not re.search(r"\.safetensors(\.index\.json)?$", str(value)):
        return "unpickle weights; only safetensors are read"
    if trust_remote_code or not value:
        return None
    if key in REFUSED:
        return REFUSED[key]
    if key in KERNELS and "/" in json.dumps(value):
        return "download and run a kernel"
    if key == "tokenizer_class" and TOKENIZER_CLASS.fullmatch(str(value)) is None:
        return "call another class than a tokenizer's"
    return None


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a JSON object, but cannot be read: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got {content!r:.100}.")
    return content


def _items(content: object) -> Iterator[tuple[str, Any]]:
    """All keys of a JSON value with their values, those of objects inside it too."""
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            yield from _items(value)
    elif isinstance(content, list):
        for value in content:
            yield from _items(value)
