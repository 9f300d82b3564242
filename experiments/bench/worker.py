"""A process that does one variant: a round for each line on its input, told as a line of JSON on its output.

So rounds of all variants take turns, and each has memory of its own. `python -m experiments.bench.worker NAME WORK`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import logging

from experiments.bench.protocol import Round, RoundProtocol, serve
from experiments.bench.work import Work


def main() -> None:
    """Be the variant that the command line names."""
    name, settings, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if name.startswith("trl"):
        from experiments.bench.peers import PEERS

        PEERS[name](Work(**settings), RoundProtocol(settings["device"]))
        return
    variants, work = ours(name)
    protocol = RoundProtocol(settings.get("device", "cpu"))
    serve(protocol, variants[name](work(**settings)))


def ours(name: str) -> tuple[dict[str, Callable[[Any], Round]], type[Any]]:
    """The variants of a name's part, and the class of what they work on; peers' processes need not have them."""
    if name.startswith("toy"):
        from experiments.bench.toys import TOYS, ToyWork

        return TOYS, ToyWork
    if name.startswith("exact"):
        from experiments.bench.exactness import EXACT, ExactWork

        return EXACT, ExactWork
    from experiments.bench.variants import VARIANTS

    return VARIANTS, Work


if __name__ == "__main__":
    main()
