"""Errors of the command line."""

from __future__ import annotations


class FlagError(ValueError):
    """Flags that are invalid or contradict each other. The command line prints it in one line, without a traceback."""
