"""Baselines that are not trained: the reference, the optimum, best of n completions of the reference, and uniform.

    best of n:  sample y_1 .. y_n ~ pi_ref(.|x), keep the one with the largest r(x, y)

r(x, y) is score and shaping, without the KL. With F(r) the probability that the r(x, y) of a completion of pi_ref is at
most r, and F(r-) that it is less, a completion is kept with probability

    pi(y|x) = pi_ref(y|x) (F(r)^n - F(r-)^n) / (F(r) - F(r-))

Its KL to the reference is at most log n - (n - 1) / n (Stiennon et al. 2020, arXiv:2009.01325; Beirami et al. 2024,
arXiv:2401.01879).
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from agents import files
from agents.files import JsonObject
from agents.policy import TransformerPolicy
from agents.training import run_on_rank0
from experiments.checkpoints import BASELINES
from experiments.errors import FlagError
from experiments.evaluation import Evaluator, check_enough, reference_policy
from experiments.reference_completions import REFERENCE_FILE, Measured, ReferenceCompletions
from experiments.summary import read_baselines
from textenv import get_mdp
from textenv.exact import Tree


def check_enough_for_best_of(num_completions: int, best_of: int) -> None:
    """Raises a FlagError if best of n, with n = `best_of`, is to be of fewer completions than n."""
    if 0 < num_completions < best_of:
        raise FlagError(
            f"--optimum-completions must be 0 or at least {best_of}, got {num_completions}: best of {best_of} comes "
            "from the same completions of each prompt."
        )


def measure_baselines(evaluator: Evaluator, folder: Path, num_completions: int = 0, best_of: int = 0) -> JsonObject:
    """Returns the baselines that all trials of a run share, see `Evaluator.baselines`; kept in `folder`.

    Args:
        evaluator: measures on the prompts of the training, and on those held out if there are any.
        folder: has `baselines.json`, and `reference.jsonl` with the completions of the reference that were sampled.
        num_completions: where the task is not enumerated, the completions of the reference per prompt, from which J* is
            estimated; 0 estimates none.
        best_of: n of best of n, from the same completions; 0 measures none.

    Raises:
        FlagError: best of n is to be of fewer completions than n.

    Returns:
        With `best_of_n` (its `n` and what was measured, None without one) and `held_out` (the same of the prompts held
        out, None without those), which has `trained_on`, how many of its prompts are trained on too.
    """
    path = folder / BASELINES
    if not run_on_rank0(path.exists):
        measured = _measure(evaluator, folder, num_completions, best_of)  # on all ranks: the others would wait
        held_out = evaluator.held_out
        if held_out is not None:
            measured["held_out"] = _measure(held_out, folder / "held_out", num_completions, best_of)
            measured["held_out"]["trained_on"] = float(_in_both(evaluator, held_out))
        run_on_rank0(lambda: _write(path, measured))
    return read_baselines(path)


def _in_both(evaluator: Evaluator, held_out: Evaluator) -> int:
    """How many prompts of an evaluation on prompts held out are trained on too, as --eval-prompts may have them."""
    trained = set(get_mdp(evaluator.env).prompts.texts)
    texts = get_mdp(held_out.env).prompts.texts
    return sum(texts[prompt] in trained for prompt in held_out.prompts)


def _write(path: Path, measured: JsonObject) -> None:
    with files.storage_errors("make", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, measured)


def _measure(evaluator: Evaluator, folder: Path, num_completions: int, best_of: int) -> JsonObject:
    completions = None
    if evaluator.tree is None and (num_completions or best_of):
        check_enough_for_best_of(num_completions, best_of)
        count = num_completions or _enough(evaluator, best_of)
        completions = sample_reference(evaluator, count, of_each=2 if num_completions else 0)
        run_on_rank0(lambda: completions.write(folder / REFERENCE_FILE))
    baselines: JsonObject = {**evaluator.baselines(completions if num_completions else None), "held_out": None}
    kept = best_of_n(evaluator, best_of, completions) if best_of else None
    return baselines | {"best_of_n": kept and {"n": best_of, **kept}}


def _enough(evaluator: Evaluator, n: int) -> int:
    """Completions of a prompt for as many groups of `n` as an evaluation has completions of it."""
    return n * -(-evaluator.episodes // len(evaluator.prompts))


def best_of_n(evaluator: Evaluator, n: int, completions: ReferenceCompletions | None = None) -> Measured:
    """Returns `objective`, `score`, `kl` (and `gold_score`) of best of `n`: exact where the task is enumerated.

    Elsewhere it is estimated from completions of the reference; by default they are sampled here, n for each completion
    of an evaluation.
    """
    if evaluator.tree is not None:
        return _exact(evaluator.tree, n)
    if completions is None:
        completions = sample_reference(evaluator, _enough(evaluator, n))
    return completions.best_of(n, evaluator.kl_coef)


def sample_reference(evaluator: Evaluator, n: int, of_each: int = 0) -> ReferenceCompletions:
    """Samples `n` completions of the reference for each prompt of an evaluation.

    Raises:
        RewardError: fewer than two of them, or fewer than `of_each` of a prompt, have a score.
    """
    reference = reference_policy(evaluator.env)
    completions = ReferenceCompletions.sample(evaluator.env, reference, evaluator.prompts, n)
    counts = completions.valid.sum(axis=1)
    check_enough(int(counts.sum()), "the reference", evaluator.env)
    if counts.min() < of_each:
        check_enough(int(counts.min()), f"the reference for {completions.prompts[counts.argmin()]!r}", evaluator.env)
    return completions


def best_of_n_log_probs(tree: Tree, n: int) -> NDArray[np.float64]:
    """log pi(y|x) of best of `n`, [N], in the order of `tree.leaves()`; ties are kept in proportion to pi_ref."""
    state, _ = tree.leaves()
    log_ref, rewards = tree.completion_log_probs(tree.ref_log_probs), _sequence_rewards(tree)
    log_probs = np.empty_like(log_ref)
    for prompt in np.unique(tree.prompt[state]):
        rows = np.flatnonzero(tree.prompt[state] == prompt)
        values, group = np.unique(rewards[rows].round(9), return_inverse=True)  # rounding makes ties exact
        mass = np.bincount(group, np.exp(log_ref[rows]), len(values))
        at_most = np.minimum(np.cumsum(mass), 1.0)
        less = np.append(0.0, at_most[:-1])
        with np.errstate(divide="ignore"):  # a completion of low reward may underflow to probability 0
            log_probs[rows] = log_ref[rows] + np.log((at_most**n - less**n) / mass)[group]
    return log_probs


def _sequence_rewards(tree: Tree) -> NDArray[np.float64]:
    """r(x, y), score and shaping, of every completion, [N]."""
    states, actions = tree.paths()
    return np.asarray(np.where(states >= 0, tree.rewards[states, actions], 0.0).sum(axis=1))


def _exact(tree: Tree, n: int) -> Measured:
    log_probs = best_of_n_log_probs(tree, n)
    probs = np.exp(log_probs) / len(tree.mdp.prompts.texts)
    log_ratio = np.where(probs > 0, log_probs - tree.completion_log_probs(tree.ref_log_probs), 0.0)
    ends = tree.leaves()
    measured = {
        "objective": float((probs * (_sequence_rewards(tree) - tree.mdp.kl_coef * log_ratio)).sum()),
        "score": float((probs * tree.scores[ends]).sum()),
        "kl": float((probs * log_ratio).sum()),
    }
    if tree.gold_scores is not None:
        measured["gold_score"] = float((probs * tree.gold_scores[ends]).sum())
    return measured


def random_policy(reference: TransformerPolicy) -> TransformerPolicy:
    """A policy that gives every allowed token the same probability: a copy with an output layer of zeros."""
    policy = copy.deepcopy(reference)
    for parameter in policy.model.get_output_embeddings().parameters():
        torch.nn.init.zeros_(parameter)
    return policy
