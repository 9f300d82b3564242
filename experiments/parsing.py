"""The command line, parsed by tyro; a refused flag is the FlagError that the config raised."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.errors import FlagError
from textenv.data import printable


def parse(command: Any, arguments: Sequence[str] | None = None, **settings: Any) -> Any:
    """Returns the config of a command line.

    tyro would show a FlagError of a config in a frame, as an error of parsing; here it is raised.

    Args:
        command: the type of the config, or the union of those of several commands.
        arguments: the command line, by default this process's.
        settings: further arguments of `tyro.cli`.

    Raises:
        FlagError: a flag has a value that its config refuses.
        SystemExit: the command line cannot be parsed; or it asked for help.
    """
    framed = io.StringIO()
    try:
        with contextlib.redirect_stderr(framed):
            config = tyro.cli(command, args=arguments, **settings)
    except SystemExit as end:
        error = end.__context__
        while error is not None and not isinstance(error, FlagError):
            error = error.__context__
        if error is not None:
            raise error from None
        sys.stderr.write(printable(framed.getvalue(), lines=True))
        raise
    sys.stderr.write(printable(framed.getvalue(), lines=True))  # warnings
    return config
