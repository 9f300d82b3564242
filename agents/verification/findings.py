"""One line of the report: something that a loss on text owes, and whether it does."""

from __future__ import annotations

import math
from dataclasses import dataclass

TOLERANCE = 1e-6  # relative


@dataclass(frozen=True)
class Finding:
    """Whether a loss has a property.

    Attributes:
        name: the property.
        error: by how much it does not hold, relative; inf where that is no number, nan where it cannot be tested.
        cause: what usually causes it where it does not hold, or why it cannot be tested.
    """

    name: str
    error: float
    cause: str = ""

    @property
    def holds(self) -> bool:
        """Whether the error is below 1e-6; False where it cannot be tested."""
        return self.error < TOLERANCE

    @property
    def broken(self) -> bool:
        """Whether it was tested and does not hold."""
        return self.error >= TOLERANCE

    def __str__(self) -> str:
        if self.holds:
            return f"{self.name}: holds"
        if not self.broken:
            return f"{self.name}: not tested, {self.cause}"
        if math.isinf(self.error):
            return f"{self.name}: no, {self.cause}"
        return f"{self.name}: no, off by {self.error:.3g}: {self.cause}"
