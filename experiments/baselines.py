"""Baselines that are not trained: the best of n completions of the reference, and the uniform policy.

    best of n:  sample y_1 .. y_n ~ pi_ref(.|x), keep the one with the largest r(x, y)

r(x, y) is score and shaping, without the KL. With F(r) the probability that the r(x, y) of a completion of pi_ref is at
most r, and F(r-) that it is less, a completion is kept with probability

    pi(y|x) = pi_ref(y|x) (F(r)^n - F(r-)^n) / (F(r) - F(r-))

Its KL to the reference is at most log n - (n - 1) / n (Stiennon et al. 2020, arXiv:2009.01325; Beirami et al. 2024,
arXiv:2401.01879).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator, sample_prompts
from experiments.evaluation import Evaluator, Measured, check_enough, reference_policy
from textenv import get_mdp
from textenv.exact import Tree

CHUNK = 1024  # completions per call of `collect`


def best_of_n(evaluator: Evaluator, n: int) -> Measured:
    """Returns `objective`, `score`, `kl` (and `gold_score`) of best of `n`: exact where the task is enumerated.

    Elsewhere it samples n completions of each of the evaluator's prompts. The KL is then its upper bound, so that the
    objective is a lower bound.
    """
    if evaluator.tree is not None:
        return _exact(evaluator.tree, n)
    reference = reference_policy(evaluator.env)
    kept: dict[str, list[float]] = {"objective": [], "score": [], "gold_score": []}
    kl = np.log(n) - (n - 1) / n
    for size, seed in evaluator.batches():
        generator = new_generator(reference.device, seed)
        starts = sample_prompts(get_mdp(evaluator.env), size * n, n, generator)
        columns: dict[str, list[Tensor]] = {name: [] for name in kept}
        for first in range(0, len(starts), CHUNK):
            start = starts[first : first + CHUNK]
            rollout = collect(evaluator.env, reference, generator=generator, values=False, start=start)
            # without the KL in the rewards: a policy fitted to a table is close to the reference, not equal
            objective = rollout.rewards.sum(dim=1) + evaluator.kl_coef * (rollout.kl - kl)
            columns["objective"].append(torch.where(rollout.valid, objective, -torch.inf))  # skipped: never the best
            columns["score"].append(rollout.scores)
            if rollout.gold_scores is not None:
                columns["gold_score"].append(rollout.gold_scores)
        sampled = {name: torch.cat(chunks).view(size, n) for name, chunks in columns.items() if chunks}
        best = sampled["objective"].argmax(dim=1, keepdim=True)
        found = sampled["objective"].isfinite().any(dim=1)  # False where all n are skipped
        for name, values in sampled.items():
            kept[name] += values.gather(1, best).squeeze(1)[found].tolist()
    check_enough(len(kept["score"]), f"best of {n}", evaluator.env)
    return {name: float(np.mean(values)) for name, values in kept.items() if values} | {"kl": float(kl)}


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
