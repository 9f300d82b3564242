"""Every class of causal language models and classifiers of transformers, made tiny: is it right in any company?

    make scan
    python -m tests.scan causal_lms GPT2Config MambaConfig

Right: stepping, sampling, updates and values, or scores, agree with those of each sequence alone. Refused: a ValueError
in a sentence, when the model is loaded. WRONG or an ACCIDENT (another error): a fault of ours.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table

from tests.helpers.company import errors, tokens_per_second
from tests.helpers.tiny_classifiers import classifier_configs, examine
from tests.helpers.tiny_models import causal_lm_configs, tiny_causal_lm
from textenv.lm import find_cache_support

CLOSE = 1e-3  # nats


class Verdict(NamedTuple):
    """Of one class.

    Attributes:
        name: of the class, without "Config".
        verdict: right, right by equal length, refused, WRONG, ACCIDENT or not made.
        reason: how it is called and the largest error, or what is wrong.
    """

    name: str
    verdict: str
    reason: str


def judge(name: str) -> Verdict:
    """Makes a causal language model of a config class, and tries it."""

    def verdict(word: str, reason: str) -> Verdict:
        return Verdict(name.removesuffix("Config"), word, " ".join(reason.split())[:160])

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
            found, rate = errors(model), tokens_per_second(model)
        except Exception as error:
            return verdict("ACCIDENT", f"{type(error).__name__}: {error}")
    worst = max(found, key=lambda what: found[what])
    how = "through a KV cache" if cached else "padded on the right, without a cache"
    return verdict(
        "right" if found[worst] < CLOSE else "WRONG", f"{how}, {rate:.0f} tokens/s; {worst} {found[worst]:.0e}"
    )


def judge_classifier(name: str) -> Verdict:
    """Makes a classifier of a config class, and tries it as a reward."""
    return Verdict(name.removesuffix("Config"), *examine(classifier_configs()[name]))


def table(verdicts: list[Verdict]) -> str:
    """One line a class, and how many there are of each verdict."""
    counts = Counter(each.verdict for each in verdicts)
    title = f"transformers {transformers.__version__}: " + ", ".join(f"{n} {word}" for word, n in counts.most_common())
    lines = Table(
        "class", "verdict", "how it is called, how fast, and the largest error; or the reason", title=title, box=None
    )
    for each in sorted(verdicts, key=lambda each: (each.verdict, each.name)):
        lines.add_row(each.name, each.verdict, each.reason)
    console = Console(width=230)
    with console.capture() as capture:
        console.print(lines, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


KINDS = {"causal_lms": (causal_lm_configs, judge), "classifiers": (classifier_configs, judge_classifier)}


def main() -> None:
    """Tries the classes that the command line names, by default all; writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("names", nargs="*", help="config classes, e.g. GPT2Config; by default all")
    parser.add_argument("--out", type=Path, help="the file of the table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    configs, judge_one = KINDS[arguments.kind]
    verdicts = []
    for name in arguments.names or configs():
        verdicts.append(judge_one(name))
        print(*verdicts[-1], flush=True)
    print(text := table(verdicts))
    if arguments.out is not None:
        arguments.out.write_text(text)
    raise SystemExit(any(each.verdict in ("WRONG", "ACCIDENT") for each in verdicts))


if __name__ == "__main__":
    main()
