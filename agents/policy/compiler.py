"""The C++ compiler that torch.compile calls on a CPU."""

from __future__ import annotations

import os
import shutil
import sys


def cpp_compiler() -> str:
    """The command that torch.compile calls on a CPU."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def check_compiler() -> None:
    """Raise a ValueError if torch.compile lacks what it needs on a CPU."""
    if shutil.which(compiler := cpp_compiler()) is None:
        raise ValueError(
            f"torch.compile needs a C++ compiler on a CPU, {compiler} is not there: install it, or name another one in "
            "the environment variable CXX."
        )
