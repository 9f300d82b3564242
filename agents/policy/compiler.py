"""What torch.compile needs: a C++ compiler on a CPU, and a model that has been called."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch


def cpp_compiler() -> str:
    """Returns the compiler command that torch.compile runs on a CPU."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def check_compiler() -> None:
    """Raises a ValueError if that compiler is not installed."""
    if shutil.which(compiler := cpp_compiler()) is None:
        raise ValueError(
            f"torch.compile needs a C++ compiler on a CPU, {compiler} is not there: install it, or name another one in "
            "the environment variable CXX."
        )


def prepare_compilation(policy: Any) -> None:
    """Prepares a `TransformerPolicy` for torch.compile; raises a ValueError if it is on a CPU without a compiler."""
    if policy.device.type == "cpu":
        check_compiler()
    ids = torch.zeros(1, 2, dtype=torch.long, device=policy.device)
    with torch.no_grad():  # on its first call transformers adds hooks to the model, which cannot be compiled
        policy.evaluate_actions(ids, torch.ones_like(ids), 1)
