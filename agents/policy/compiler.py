"""The C++ compiler that torch.compile needs on a CPU."""

from __future__ import annotations

import os
import shutil
import sys


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
