"""What a reward function prints: kept away from a report, and counted."""

from __future__ import annotations

import io
import sys


class Printed(io.TextIOWrapper):
    """A standard output that keeps the first line that is printed, and counts the lines.

    Processes that a reward starts print to standard error.

    Attributes:
        first: the first line that is not empty, of those that were counted.
    """

    def __init__(self) -> None:
        self.first, self._bytes, self._lines = "", io.BytesIO(), 0
        super().__init__(self._bytes, encoding="utf-8", errors="backslashreplace", write_through=True)

    def count(self) -> int:
        """The lines so far."""
        new = self._bytes.getvalue().decode("utf-8", "replace").splitlines()
        self._bytes.seek(0)
        self._bytes.truncate()
        self.first = self.first or next((line for line in new if line.strip()), "")
        self._lines += len(new)
        return self._lines

    def fileno(self) -> int:
        """That of standard error."""
        return sys.stderr.fileno()
