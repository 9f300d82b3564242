"""Preference pairs from labelled texts: one with label 1 is preferred to one with label 0, for `reward-model`.

    pip install -e ".[experiments]"
    python -m experiments.examples.preference_pairs --texts train.jsonl --out pairs.jsonl

Reads rows of {"text", "label"}; writes rows of {"prompt", "chosen", "rejected"}, as many as the rarer label has texts.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import tyro

from textenv.data import read_jsonl


@dataclass
class Args:
    """Which texts."""

    texts: Path
    """JSONL, {"text", "label"} a line, labels 0 and 1."""
    out: Path
    """The file to write."""
    prompt: str = "The film:"
    """What every answer answers."""
    seed: int = 0
    """Seeds who meets whom."""


def write_pairs(args: Args) -> int:
    """Write the file; returns the number of pairs."""
    texts: dict[int, list[str]] = {1: [], 0: []}
    for where, row in read_jsonl(args.texts):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("label") not in texts:
            raise ValueError(f'{where}: must be an object with "text" and the "label" 0 or 1, got {row!r}')
        texts[row["label"]].append(row["text"])
    liked, disliked = texts[1], texts[0]
    rng = random.Random(args.seed)
    rng.shuffle(liked)
    rng.shuffle(disliked)
    pairs = list(zip(liked, disliked, strict=False))  # the longer one's rest is left out
    with args.out.open("w", encoding="utf-8") as file:
        for chosen, rejected in pairs:
            file.write(json.dumps({"prompt": args.prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    return len(pairs)


if __name__ == "__main__":
    print(f"{write_pairs(tyro.cli(Args)):,} pairs")
