"""Errors of the command line."""

from __future__ import annotations


class FlagError(ValueError):
    """Flags that do not fit: told to the user in a line, without a traceback."""
