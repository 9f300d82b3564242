"""What learns nothing, and what every agent should beat: the reference, the best of n of its answers, chance.

    best of n:  draw y_1 .. y_n ~ pi_ref(.|x), keep the one that is paid best

With F(r) the probability that pi_ref's answer is paid at most r, and F(r-) that it is paid less, an answer is kept with
probability  pi(y|x) = pi_ref(y|x) (F(r)^n - F(r-)^n) / (F(r) - F(r-)).  Its KL to the reference is at most
log n - (n - 1) / n (Stiennon et al. 2020, arXiv:2009.01325; Beirami et al. 2024, arXiv:2401.01879).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy import TransformerPolicy
from agents.sampling import collect, new_generator, sample_prompts
from experiments.evaluation import Evaluator, Measured, reference_policy
from textenv import get_mdp
from textenv.exact import Tree

CHUNK = 1024  # answers that are written at once


def best_of_n(evaluator: Evaluator, n: int) -> Measured:
    """`objective`, `score`, `kl` (and `gold_score`) of the reference's best of `n`: exact where the task is enumerated.

    Elsewhere n answers to each of the evaluator's prompts are drawn, and the KL is its upper bound, so that the
    objective is a lower one.
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
            answers = collect(evaluator.env, reference, generator=generator, values=False, start=start)
            # a table's copy is not quite the reference: without the KL that it is paid
            columns["objective"].append(answers.rewards.sum(dim=1) + evaluator.kl_coef * (answers.kl - kl))
            columns["score"].append(answers.scores)
            if answers.gold_scores is not None:
                columns["gold_score"].append(answers.gold_scores)
        drawn = {name: torch.cat(parts).view(size, n) for name, parts in columns.items() if parts}
        best = drawn["objective"].argmax(dim=1, keepdim=True)
        for name, values in drawn.items():
            kept[name] += values.gather(1, best).squeeze(1).tolist()
    return {name: float(np.mean(values)) for name, values in kept.items() if values} | {"kl": float(kl)}


def best_of_n_log_probs(tree: Tree, n: int) -> NDArray[np.float64]:
    """log pi(y|x) of every finished text, [N], in the order of `tree.leaves()`; among equals the reference decides."""
    state, _ = tree.leaves()
    log_ref, paid = tree.completion_log_probs(tree.ref_log_probs), _paid(tree)
    log_probs = np.empty_like(log_ref)
    for prompt in np.unique(tree.prompt[state]):
        rows = np.flatnonzero(tree.prompt[state] == prompt)
        values, group = np.unique(paid[rows].round(9), return_inverse=True)  # rounding makes equals equal
        mass = np.bincount(group, np.exp(log_ref[rows]), len(values))
        at_most = np.minimum(np.cumsum(mass), 1.0)
        less = np.append(0.0, at_most[:-1])
        with np.errstate(divide="ignore"):  # a poor answer among many may have probability 0
            log_probs[rows] = log_ref[rows] + np.log((at_most**n - less**n) / mass)[group]
    return log_probs


def _paid(tree: Tree) -> NDArray[np.float64]:
    """r(x, y), score and shaping, of every finished text, [N]."""
    states, actions = tree.paths()
    return np.asarray(np.where(states >= 0, tree.rewards[states, actions], 0.0).sum(axis=1))


def _exact(tree: Tree, n: int) -> Measured:
    log_probs = best_of_n_log_probs(tree, n)
    probs = np.exp(log_probs) / len(tree.mdp.prompts.texts)
    log_ratio = np.where(probs > 0, log_probs - tree.completion_log_probs(tree.ref_log_probs), 0.0)
    ends = tree.leaves()
    measured = {
        "objective": float((probs * (_paid(tree) - tree.mdp.kl_coef * log_ratio)).sum()),
        "score": float((probs * tree.scores[ends]).sum()),
        "kl": float((probs * log_ratio).sum()),
    }
    if tree.gold_scores is not None:
        measured["gold_score"] = float((probs * tree.gold_scores[ends]).sum())
    return measured


def random_policy(reference: TransformerPolicy) -> TransformerPolicy:
    """Every allowed token with the same probability: the reference's network with an output layer of zeros."""
    policy = copy.deepcopy(reference)
    for parameter in policy.model.get_output_embeddings().parameters():
        torch.nn.init.zeros_(parameter)
    return policy
