"""Completions of the reference, from which J_ref, J* and best of n are estimated where the task is not enumerated.

They are sampled once a run, and kept in `reference.jsonl` beside its baselines.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln

from agents import files
from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator
from experiments.console import progress_bar
from textenv import EnvLike, exact, get_mdp
from textenv.references import CausalLMReference

REFERENCE_FILE = "reference.jsonl"
SEED = 54_321  # of the tokens: others than those of evaluations
CHUNK = 1024  # completions per call of `collect`
Array = NDArray[np.float64]
Measured = dict[str, float]  # objective, score, kl, gold_score where there is one, and their standard errors


@dataclass(frozen=True)
class ReferenceCompletions:
    """N completions of each of P prompts; numbers are float64 [P, N], nan where a completion is skipped.

    Attributes:
        prompts: the prompts, as text.
        completions: object array [P, N] of texts.
        rewards: r(x, y), score and shaping, without the KL.
        log_ratios: log(pi(y|x) / pi_ref(y|x)) of the policy pi that has sampled: 0 where it is the reference itself,
            small where it was fitted to a table. J* is corrected for it; J_ref and KL(pi* || pi_ref) are not.
        scores: score(x, y).
        gold_scores: of the gold reward; None where there is none.
    """

    prompts: list[str]
    completions: NDArray[np.object_]
    rewards: Array
    log_ratios: Array
    scores: Array
    gold_scores: Array | None

    @classmethod
    def sample(cls, env: EnvLike, reference: TransformerPolicy, prompts: Sequence[int], n: int) -> ReferenceCompletions:
        """Samples `n` completions of each of `prompts` (indices), with a progress bar where that takes long."""
        mdp, generator = get_mdp(env), new_generator(reference.device, SEED)
        is_reference = isinstance(mdp.reference, CausalLMReference) and mdp.reference.model is reference.model
        rows, columns = np.repeat(np.asarray(prompts), n), dict[str, list[NDArray[np.generic]]]()
        with progress_bar(total=len(rows), unit="completion", desc="reference", leave=False, delay=5) as bar:
            for first in range(0, len(rows), CHUNK):
                chunk = rows[first : first + CHUNK]
                start = mdp.empty_state(len(chunk))
                mdp.reset_rows(start, np.arange(len(chunk)), chunk)
                rollout = collect(env, reference, generator=generator, values=False, start=start)
                found = {"log_ratios": rollout.kl, "scores": rollout.scores, "gold_scores": rollout.gold_scores}
                if is_reference:  # what is left is rounding
                    found["log_ratios"] = torch.zeros_like(rollout.kl)
                found["rewards"] = rollout.rewards.cpu().double().sum(dim=1) + mdp.kl_coef * rollout.kl.cpu()
                for name, values in found.items():
                    if values is not None:
                        numbers = torch.where(rollout.valid.cpu(), values.cpu().double(), torch.nan)
                        columns.setdefault(name, []).append(numbers.numpy())
                columns.setdefault("completions", []).append(rollout.completions)
                bar.update(len(chunk))
        arrays = {name: np.concatenate(parts).reshape(len(prompts), n) for name, parts in columns.items()}
        texts = [mdp.prompts.texts[i] for i in prompts]
        return cls(texts, **{"gold_scores": None, **arrays})  # type: ignore[arg-type]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """False where a completion is skipped, [P, N]."""
        return ~np.isnan(self.rewards)

    def optimum(self, kl_coef: float, max_score: float | None) -> exact.OptimumEstimate:
        """Estimates J*; by r - beta log(pi / pi_ref), whose exponential has the mean Z(x) under any policy pi.

        Raises:
            ValueError: a prompt has fewer than two completions that are not skipped.
        """
        if self.log_ratios.any():
            max_score = None  # the bound needs exact samples of the reference
        with warnings.catch_warnings():  # the effective sample sizes are printed with the estimate
            warnings.simplefilter("ignore", UserWarning)
            return exact.optimum_from_scores(self.rewards - kl_coef * self.log_ratios, kl_coef, max_score=max_score)

    def reference(self) -> Measured:
        """Means over prompts of objective and scores of the reference, with standard errors; the prompts are given."""
        columns = {"objective": self.rewards, "score": self.scores}
        if self.gold_scores is not None:
            columns["gold_score"] = self.gold_scores
        count = self.valid.sum(axis=1)
        means = {name: float(np.nanmean(values, axis=1).mean()) for name, values in columns.items()}
        errors = {
            f"{name}_stderr": float(np.sqrt((np.nanvar(values, axis=1, ddof=1) / count).sum()) / len(count))
            for name, values in columns.items()
        }
        return means | errors

    def best_of(self, n: int, kl_coef: float) -> Measured:
        """Estimates objective, scores and KL of best of `n` <= N, from all groups of n among the N of each prompt.

        The i-th smallest r of N is the largest of n with probability C(i - 1, n - 1) / C(N, n). (Of a prompt with fewer
        completions that are not skipped, all are one group.) The KL is its upper bound, log n - (n - 1) / n, so that
        the objective is a lower bound.
        """
        kl = float(np.log(n) - (n - 1) / n)
        columns = {"objective": self.rewards - kl_coef * kl, "score": self.scores}
        if self.gold_scores is not None:
            columns["gold_score"] = self.gold_scores
        order, counts = np.argsort(self.rewards, axis=1), self.valid.sum(axis=1)  # nan last
        weights = np.array([_weights_of_best(count, min(n, count), order.shape[1]) for count in counts])
        return {
            name: float((weights * np.nan_to_num(np.take_along_axis(values, order, axis=1))).sum() / (counts > 0).sum())
            for name, values in columns.items()
        } | {"kl": kl}

    def write(self, path: Path) -> None:
        """Writes a row for each completion."""
        columns = {"score": self.scores, "reward": self.rewards, "kl": self.log_ratios}
        if self.gold_scores is not None:
            columns["gold_score"] = self.gold_scores
        lines = []
        for i, prompt in enumerate(self.prompts):
            for j, completion in enumerate(self.completions[i]):
                numbers = {name: round(float(values[i, j]), 6) for name, values in columns.items()}
                lines.append(json.dumps(files.finite({"prompt": prompt, "completion": completion} | numbers)))
        with files.storage_errors("make", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, "\n".join(lines) + "\n")


def _weights_of_best(count: int, n: int, size: int) -> Array:
    """The probability that each of `count` values in ascending order is the largest of n of them, in [size] columns."""
    weights, rank = np.zeros(size), np.arange(n, count + 1)
    if n == 0:
        return weights
    weights[n - 1 : count] = np.exp(_log_choose(rank - 1, n - 1) - _log_choose(count, n))
    return weights


def _log_choose(n: int | NDArray[np.int64], k: int) -> Array:
    """log C(n, k)."""
    return np.asarray(gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0))
