"""python -m experiments: see `experiments.command_line`."""

from __future__ import annotations

import sys

from experiments.name_clash import agents_clash

if __name__ == "__main__":
    if (clash := agents_clash()) is not None:
        print(f"error: {clash}", file=sys.stderr)
        sys.exit(2)
    from experiments.command_line import main  # after the check, for it imports `agents`

    main()
