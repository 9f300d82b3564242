"""Every causal language model class of the installed transformers, made tiny: is what it says in company right?

    make scan

Right: stepping, sampling, updates and values agree with each sequence alone. Refused: a ValueError in a sentence, when
the model is loaded. Wrong or an accident (another error): a fault of ours.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table

from tests.helpers.company import errors
from tests.helpers.tiny_models import causal_lm_configs, tiny_causal_lm
from textenv.lm import find_cache_support

CLOSE = 1e-3  # nats


class Verdict(NamedTuple):
    """Of one class."""

    name: str
    verdict: str
    """right, refused, WRONG, ACCIDENT or not made."""
    reason: str
    seconds: float


def judge(name: str) -> Verdict:
    """Makes a model of a config class, and tries it."""
    start = time.monotonic()

    def verdict(word: str, reason: str) -> Verdict:
        return Verdict(name.removesuffix("Config"), word, " ".join(reason.split())[:160], time.monotonic() - start)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tiny_causal_lm(causal_lm_configs()[name])
        except Exception as error:
            return verdict("not made", f"{type(error).__name__}: {error}")
        try:
            cached = find_cache_support(model)
        except ValueError as error:
            return verdict("refused", str(error))
        except Exception as error:
            return verdict("ACCIDENT", f"{type(error).__name__}: {error}")
        try:
            found = errors(model)
        except Exception as error:
            return verdict("ACCIDENT", f"{type(error).__name__}: {error}")
    worst = max(found, key=lambda what: found[what])
    how = "through a KV cache" if cached else "padded on the right, without a cache"
    return verdict("right" if found[worst] < CLOSE else "WRONG", f"{how}; {worst} {found[worst]:.0e}")


def table(verdicts: list[Verdict]) -> str:
    """One line a class, and how many there are of each verdict."""
    counts = Counter(each.verdict for each in verdicts)
    title = f"transformers {transformers.__version__}: " + ", ".join(f"{n} {word}" for word, n in counts.most_common())
    lines = Table("class", "verdict", "how it is read and the largest error, or the reason", title=title, box=None)
    for each in sorted(verdicts, key=lambda each: (each.verdict, each.name)):
        lines.add_row(each.name, each.verdict, each.reason)
    console = Console(width=230)
    with console.capture() as capture:
        console.print(lines, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def main() -> None:
    """Tries the classes that the command line names, by default all; writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="config classes, e.g. GPT2Config; by default all")
    parser.add_argument("--out", type=Path, help="the file of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    verdicts = []
    for name in arguments.names or causal_lm_configs():
        verdicts.append(judge(name))
        print(*verdicts[-1], flush=True)
    print(text := table(verdicts))
    if arguments.out is not None:
        arguments.out.write_text(text)
    raise SystemExit(any(each.verdict in ("WRONG", "ACCIDENT") for each in verdicts))


if __name__ == "__main__":
    main()
