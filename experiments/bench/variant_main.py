"""The entry point of a variant process: runs a round for each line on stdin and reports it as a line of JSON on stdout.

Rounds of all variants thus alternate, and each variant has its own memory.
`python -m experiments.bench.variant_main NAME WORK THREADS`.
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
    """Runs the variant that the command line names."""
    name, settings, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if name.startswith("trl"):
        from experiments.bench.peers import PEERS

        PEERS[name](Work(**settings), RoundProtocol(settings["device"]))
        return
    variants, work = variants_of(name)
    protocol = RoundProtocol(settings.get("device", "cpu"))
    serve(protocol, variants[name](work(**settings)))


def variants_of(name: str) -> tuple[dict[str, Callable[[Any], Round]], type[Any]]:
    """Returns the variants of the part that `name` belongs to, and the class of their work.

    Imports are local because the environments of the peers lack some of these packages.
    """
    if name.startswith("toy"):
        from experiments.bench.toys import TOYS, ToyWork

        return TOYS, ToyWork
    if name.startswith("exact"):
        from experiments.bench.exactness import EXACT, ExactWork

        return EXACT, ExactWork
    from experiments.bench.variants import VARIANTS

    return {name: variant.start for name, variant in VARIANTS.items()}, Work


if __name__ == "__main__":
    main()
