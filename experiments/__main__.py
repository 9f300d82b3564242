"""python -m experiments: see `experiments.command_line`."""

from __future__ import annotations

import os
import signal
import sys

from experiments.name_clash import agents_clash

if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # while packages are imported there is nothing to lose
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    if (clash := agents_clash()) is not None:
        print(f"error: {clash}", file=sys.stderr)
        sys.exit(2)
    from experiments.command_line import main  # after the check, for it imports `agents`

    main()
