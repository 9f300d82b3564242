"""Preference pairs from labelled texts, for `reward-model`: label 1 is preferred to label 0.

    pip install -e ".[experiments]"
    python -m experiments.examples.preference_pairs --texts train.jsonl --out pairs.jsonl

Reads rows of {"text", "label"}; writes rows of {"prompt", "chosen", "rejected"}, one for each text of the rarer label.
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
    """Input, output and prompt."""

    texts: Path
    """JSONL file with {"text", "label"} per line; labels are 0 and 1."""
    out: Path
    """The file to write."""
    prompt: str = "The film:"
    """The prompt of every pair."""
    seed: int = 0
    """Seed of the pairing."""


def write_pairs(args: Args) -> int:
    """Writes the file; returns the number of pairs."""
    texts: dict[int, list[str]] = {1: [], 0: []}
    for where, row in read_jsonl(args.texts):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or row.get("label") not in texts:
            raise ValueError(f'{where}: must be an object with "text" and the "label" 0 or 1, got {row!r}')
        texts[row["label"]].append(row["text"])
    liked, disliked = texts[1], texts[0]
    rng = random.Random(args.seed)
    rng.shuffle(liked)
    rng.shuffle(disliked)
    pairs = list(zip(liked, disliked, strict=False))  # the rest of the longer list is left out
    with args.out.open("w", encoding="utf-8") as file:
        for chosen, rejected in pairs:
            file.write(json.dumps({"prompt": args.prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    return len(pairs)


if __name__ == "__main__":
    print(f"{write_pairs(tyro.cli(Args)):,} pairs")
