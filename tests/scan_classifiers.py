"""Which of transformers' sequence classifiers can be rewards: prints a row for each class that can be made tiny.

python -m tests.scan_classifiers [NAME ...]        about two minutes for all of them
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from transformers.utils import logging

from tests.helpers.tiny_classifiers import config_classes, examine


def main(names: list[str]) -> int:
    """Prints the table, and returns 1 if a class is wrong or fails by accident."""
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for cls in config_classes():
        if names and cls.__name__ not in names:
            continue
        found = examine(cls)
        counts[found.verdict] += 1
        print(f"{found.name:32} {found.verdict:22} {found.reason}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return int(counts["WRONG"] + counts["FAILS"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
