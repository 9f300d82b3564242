"""What a reward's check foresaw, beside what a policy has learned: how often each word is used.

    python -m experiments train --reward vader --optimum-completions 256 --samples-per-eval 512 ... --out runs/rloo
    python -m experiments.examples.foresight --run runs/rloo

The share of completions with a word, under the reference, and under the optimum pi* ~ pi_ref exp(r / beta), by the
weights of the completions of the reference that the run has kept (`initial/reference.jsonl`); and under the trained
policy (the last of `samples/`). Nothing of it needs the model.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from experiments.console import plain_console
from textenv.exact import MIN_EFFECTIVE_SAMPLES, optimum_from_scores

WORD = re.compile(r"\w+|[^\w\s]+")
SHARE = 0.02  # of the completions of the reference, at least, have a word that is counted
Array = NDArray[np.float64]


@dataclass
class Args:
    """The run, and what is shown of it."""

    run: Path
    """Folder of `train`, with --optimum-completions and --samples-per-eval in the hundreds."""
    top: int = 10
    """Words that are shown: those which pi* has most more of."""


@dataclass(frozen=True)
class Foresight:
    """The share of completions with each of W words, [W]: of the reference, of pi* at a beta, and of the policy."""

    kl_coef: float
    words: list[str]
    reference: Array
    optimum: Array
    policy: Array

    @property
    def correlation(self) -> float:
        """The correlation of the foreseen change with the change, over words."""
        return float(np.corrcoef(self.optimum - self.reference, self.policy - self.reference)[0, 1])

    def same_direction(self, count: int) -> int:
        """Of the `count` words that pi* shifts most, how many the policy has shifted in that direction."""
        foreseen, found = self.optimum - self.reference, self.policy - self.reference
        most = np.argsort(-np.abs(foreseen))[:count]
        return int((np.sign(foreseen) == np.sign(found))[most].sum())


def compare(run: Path) -> Foresight:
    """Reads a run; raises a FileNotFoundError where it has kept no completions of the reference, or no samples."""
    rows = _rows(run / "initial" / "reference.jsonl")
    groups = [list(group) for _, group in groupby(rows, lambda row: row["prompt"])]
    rewards = np.array([[np.nan if row["reward"] is None else row["reward"] for row in group] for group in groups])
    beta, weights = _weights(rewards, json.loads((run / "config.json").read_text())["flags"]["kl_coef"])
    last = max((run / "samples").glob("*.jsonl"), key=lambda path: int(path.stem))
    reference, policy = (_words(found) for found in (rows, _rows(last)))
    words = sorted(set.union(*reference))
    has = np.array([[word in each for word in words] for each in reference], dtype=np.float64)
    kept = has.mean(axis=0) >= SHARE
    words = [word for word, keep in zip(words, kept, strict=True) if keep]
    after = np.array([[word in each for word in words] for each in policy], dtype=np.float64)
    optimum = weights.ravel() @ has[:, kept] / len(groups)
    return Foresight(beta, words, has[:, kept].mean(axis=0), optimum, after.mean(axis=0))


def _weights(rewards: Array, beta: float) -> tuple[float, Array]:
    """The weights of pi* at the task's beta, or at the first doubling where 10 completions of each prompt decide.

    A policy that is trained passes the optima of larger beta on its way; fewer completions would tell of themselves.
    """
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            estimate = optimum_from_scores(rewards, beta)
        if estimate.effective_sample_size.min() >= min(MIN_EFFECTIVE_SAMPLES, rewards.shape[1] / 2):
            return beta, estimate.weights
        beta *= 2


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(rows: list[dict[str, object]]) -> list[set[str]]:
    return [set(WORD.findall(str(row["completion"]).lower())) for row in rows]


def main(args: Args) -> None:
    """Prints the words, and how well the change of all of them was foreseen."""
    found, console = compare(args.run), plain_console()
    moved = found.optimum - found.reference
    console.print(f"{'word':<12} {'pi_ref':>7} {'pi*':>7} {'policy':>7}")
    for k in [*np.argsort(-moved)[: args.top], *np.argsort(moved)[: args.top // 2][::-1]]:
        shares = (found.reference[k], found.optimum[k], found.policy[k])
        console.print(f"{found.words[k]:<12} " + " ".join(f"{share:>7.1%}" for share in shares))
    console.print(
        f"{len(found.words)} words, pi* at beta {found.kl_coef:g}: correlation of the foreseen change with the change "
        f"{found.correlation:.2f}; of the 20 that pi* shifts most {found.same_direction(20)} moved as foreseen.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
