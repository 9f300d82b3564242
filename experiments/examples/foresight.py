"""What a reward's check foresaw, beside what a policy has learned: how often each word is used.

    python -m experiments train --reward vader --optimum-completions 256 --samples-per-eval 512 ... --out runs/rloo
    python -m experiments.examples.foresight --run runs/rloo

The share of completions with a word, under the reference, and under the optimum pi* ~ pi_ref exp(r / beta), by the
weights of the completions of the reference that the run has kept (`initial/reference.jsonl`); and under the trained
policy (the last of `samples/`). Nothing of it needs the model.

What is foreseen of a change is its correlation, over words, with the change that the weights foresee. Beside it is
the same with the weights of each prompt in random order: weights that know nothing of the completions.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from experiments.console import plain_console
from experiments.errors import FlagError
from textenv.exact import MIN_EFFECTIVE_SAMPLES, optimum_from_scores

WORD = re.compile(r"\w+|[^\w\s]+")
SHUFFLES = 200
SHARE = 0.02  # of the completions of the reference, at least, have a word that is counted
Array = NDArray[np.float64]


@dataclass
class Args:
    """The run, and what is shown of it."""

    run: Path
    """Folder of `train`, with --optimum-completions and --samples-per-eval in the hundreds."""
    top: int = 10
    """Words that are shown: those which pi* has most more of."""
    kl_coef: float | None = None
    """beta of pi*; by default that of the run's --kl-coef."""


@dataclass(frozen=True)
class Foresight:
    """The share of completions with each of W words.

    Attributes:
        kl_coef: beta of pi*.
        words: the W words.
        reference, optimum, policy: the shares [W] of the reference, of pi* and of the policy.
        shuffled: those by weights of pi* that are shuffled within prompts, [`SHUFFLES`, W].
    """

    kl_coef: float
    words: list[str]
    reference: Array
    optimum: Array
    policy: Array
    shuffled: Array

    @property
    def correlation(self) -> float:
        """The correlation of the foreseen change with the change, over words."""
        return self._correlation(self.optimum)

    @property
    def by_chance(self) -> tuple[float, float]:
        """Mean and standard deviation of the correlation with what shuffled weights foresee."""
        found = [self._correlation(shares) for shares in self.shuffled]
        return float(np.mean(found)), float(np.std(found))

    def _correlation(self, foreseen: Array) -> float:
        return float(np.corrcoef(foreseen - self.reference, self.policy - self.reference)[0, 1])

    def same_direction(self, count: int) -> int:
        """Of the `count` words that pi* shifts most, how many the policy has shifted in that direction."""
        foreseen, found = self.optimum - self.reference, self.policy - self.reference
        most = np.argsort(-np.abs(foreseen))[:count]
        return int((np.sign(foreseen) == np.sign(found))[most].sum())


def compare(run: Path, kl_coef: float | None = None) -> Foresight:
    """Reads a run.

    Args:
        run: its folder.
        kl_coef: beta; None: that of the run's --kl-coef.

    Raises:
        FileNotFoundError: it has kept no completions of the reference, or no samples.
        FlagError: beta is not known, or is 0; or J* was not estimated.
    """
    rows, flags = (
        _rows(run / "initial" / "reference.jsonl"),
        json.loads((run / "config.json").read_text(encoding="utf-8"))["flags"],
    )
    if not (paths := list((run / "samples").glob("*.jsonl"))):
        raise FileNotFoundError(f"{run / 'samples'} holds no completions; train with --samples-per-eval 512.")
    last = max(paths, key=lambda path: int(path.stem))
    if not (kl_coef := flags["kl_coef"] if kl_coef is None else kl_coef):
        raise FlagError("beta must be known and greater than 0: the run had no --kl-coef, so give --kl-coef here.")
    # rows are one prompt after the other; two prompts may be equal, so their texts do not tell where one ends
    if not (
        count := json.loads((run / "initial" / "baselines.json").read_text(encoding="utf-8")).get("optimum_completions")
    ):
        raise FlagError(f"{run}: J* was not estimated; train with --optimum-completions 256.")
    rewards, log_ratios = (
        np.array([np.nan if row[name] is None else row[name] for row in rows]).reshape(-1, int(count))
        for name in ("reward", "kl")
    )
    beta, weights = _weights(rewards, log_ratios, kl_coef)
    reference, policy = (_words(found) for found in (rows, _rows(last)))
    words = sorted(set.union(*reference))
    has = np.array([[word in each for word in words] for each in reference], dtype=np.float64)
    kept = has.mean(axis=0) >= SHARE
    words, has = [word for word, keep in zip(words, kept, strict=True) if keep], has[:, kept]
    after = np.array([[word in each for word in words] for each in policy], dtype=np.float64)
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permuted(weights, axis=1).ravel() for _ in range(SHUFFLES)]) @ has / len(weights)
    optimum = weights.ravel() @ has / len(weights)
    return Foresight(beta, words, has.mean(axis=0), optimum, after.mean(axis=0), shuffled)


def _weights(rewards: Array, log_ratios: Array, beta: float) -> tuple[float, Array]:
    """The weights of pi* at the task's beta, or at the first doubling where 10 completions of each prompt decide.

    A policy that is trained passes the optima of larger beta on its way; fewer completions would tell of themselves.

    Args:
        rewards: r(x, y), [P, N].
        log_ratios: log(pi(y|x) / pi_ref(y|x)) of the policy that has sampled them, [P, N], by which the weights are
            corrected, as `ReferenceCompletions.optimum` is.
        beta: the smallest.
    """
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            estimate = optimum_from_scores(rewards - beta * log_ratios, beta)
        if estimate.effective_sample_size.min() >= min(MIN_EFFECTIVE_SAMPLES, rewards.shape[1] / 2):
            return beta, estimate.weights
        beta *= 2


def _rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _words(rows: list[dict[str, object]]) -> list[set[str]]:
    return [set(WORD.findall(str(row["completion"]).lower())) for row in rows]


def main(args: Args) -> None:
    """Prints the words, and how well the change of all of them was foreseen."""
    found, console = compare(args.run, args.kl_coef), plain_console()
    (mean, spread), moved = found.by_chance, found.optimum - found.reference
    console.print(f"{'word':<12} {'pi_ref':>7} {'pi*':>7} {'policy':>7}")
    for k in [*np.argsort(-moved)[: args.top], *np.argsort(moved)[: args.top // 2][::-1]]:
        shares = (found.reference[k], found.optimum[k], found.policy[k])
        console.print(f"{found.words[k]:<12} " + " ".join(f"{share:>7.1%}" for share in shares))
    console.print(
        f"{len(found.words)} words, pi* at beta {found.kl_coef:g}: correlation of the foreseen change with the change "
        f"{found.correlation:.2f} (by chance, with shuffled weights, {mean:.2f} ± {spread:.2f}); of the 20 "
        f"that pi* shifts most {found.same_direction(20)} moved as foreseen.",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main(tyro.cli(Args))
