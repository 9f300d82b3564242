"""Credit: the variance ladder. What a token is credited with changes the variance of the gradient, not its mean.

    g_hat = 1/K sum_k sum_t grad log pi(a_t|s_t) w_t,        K answers to one prompt

w_t is the whole return, the reward to go, either with a baseline, Q, or the advantage. Every batch of K answers is
enumerated with its probability, so that mean and covariance of g_hat are exact: nothing is sampled. Gradients are taken
by the logits of a table (a parameter for every state and action), where Rao-Blackwell says that Q cannot be noisier
than the reward to go, and by the weights of a transformer. No such theorem puts the reward to go below the whole
return: what a token cannot have changed also cancels, now and then, what came after it.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.returns import batch_mean, gae, leave_one_out, reward_to_go
from experiments.lecture.answers import Answers, midway_policy
from experiments.lecture.gram import parameter_gram, tabular_gram
from experiments.lecture.value_head import fit_values, with_new_critic
from textenv import exact

BATCH = 4  # K, answers to the prompt: REINFORCE's num_generations
CONTINUATIONS = 4
CRITIC_STEPS = 100  # of the learned V


def measure() -> dict[str, Any]:
    """Mean and variance of every estimator, at a policy midway between reference and optimum."""
    env = gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=4, num_prompts=1, task_seed=1)
    policy = midway_policy(env, 3000)
    answers = Answers.of(exact.evaluate(env, policy))
    critic = with_new_critic(policy, separate=True)
    for _ in fit_values(env, critic, CRITIC_STEPS):
        pass
    found = estimators(answers, answers.learned_values(critic))
    grams = {"table": tabular_gram(answers), "transformer": parameter_gram(policy, answers)}
    return {kind: {name: moments(answers, *found[name], gram) for name in found} for kind, gram in grams.items()}


def batches(answers: Answers, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Every batch of K answers to the toy's one prompt, whatever their order: rows [M, K] and probability [M]."""
    count = len(answers.probability)
    rows = torch.tensor(list(itertools.combinations_with_replacement(range(count), size)))
    times = torch.zeros(len(rows), count, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double())
    orders = math.factorial(size) / torch.exp(torch.lgamma(times + 1).sum(dim=1))
    return rows, orders * answers.probability[rows].prod(dim=1)


def estimators(answers: Answers, learned: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The weights of each rung: w_t in every batch, [M, K, T], and the variance of w_t given the batch, [N, T].

    Args:
        answers: all of them.
        learned: V(s_t) as a value head has learned it, [N, T].
    """
    rewards, mask, known = answers.rewards, answers.mask, answers.evaluation
    rows, _ = batches(answers)
    to_go = reward_to_go(rewards, mask)
    returns = to_go[:, 0][rows]
    q_values, values = answers.look_up(known.q_values), answers.look_up(known.values)
    each = {
        "whole return": to_go[:, :1].expand_as(to_go),
        "reward to go": to_go,
        "to go - mean": to_go[rows] - torch.vmap(batch_mean)(returns)[:, :, None],
        "to go - leave-one-out": to_go[rows] - leave_one_out(returns.flatten(), BATCH).view(-1, BATCH, 1),
        "to go - exact V": gae(rewards, values, mask, gae_lambda=1.0),
        f"Q, {CONTINUATIONS} continuations": q_values,
        "exact Q": q_values,
        "advantage, exact V": gae(rewards, values, mask, gae_lambda=0.0),
        "GAE(0.95), learned V": gae(rewards, learned, mask, gae_lambda=0.95),
        "advantage, learned V": gae(rewards, learned, mask, gae_lambda=0.0),
    }
    # given (s_t, a_t), a mean over continuations is Q and noise that knows nothing of the batch
    spread = (to_go - answers.mean_given(answers.edges, to_go)) ** 2
    sampled = answers.mean_given(answers.edges, spread) / CONTINUATIONS
    return {
        name: (w if w.ndim == 3 else w[rows], sampled if "continuations" in name else torch.zeros_like(sampled))
        for name, w in each.items()
    }


def moments(answers: Answers, weights: Tensor, noise: Tensor, gram: Tensor) -> dict[str, Any]:
    """Bias and variance of one estimator.

    Args:
        answers: all of them.
        weights: w_t in every batch, [M, K, T].
        noise: the variance of w_t, given the batch, [N, T].
        gram: grad log pi(a|s) . grad log pi(b|s'), [S V, S V].

    Returns:
        `bias`: |E g_hat - grad J| / |grad J|; `variance`: tr Cov(g_hat), for one answer (K times that of a batch);
        `per_token`: the same of the part of each t; `noise_to_signal`: variance / |E g_hat|^2, which a scaled
        estimator cannot improve.
    """
    size = weights.shape[1]
    rows, probability = batches(answers, size)
    masked = torch.where(answers.mask[rows], weights, 0.0)
    coefficients = torch.zeros(len(rows), len(gram), dtype=torch.float64)
    coefficients.scatter_add_(1, answers.edges[rows].flatten(1), masked.flatten(1) / size)
    sampled = torch.zeros(len(gram), dtype=torch.float64)  # E sum of noise on each edge, an answer
    sampled.scatter_add_(0, answers.edges.flatten(), (answers.visit_weights() * noise).flatten())

    known = answers.evaluation
    true = torch.as_tensor((known.visits[:, None] * np.exp(known.log_probs) * known.advantages).ravel())
    mean = probability @ coefficients
    time = np.zeros(len(known.visits), dtype=np.int64)
    for t, level in enumerate(answers.tree.levels):
        time[level] = t
    token = torch.as_tensor(time).repeat_interleave(answers.tree.process.vocab_size)

    def variance(part: Tensor) -> float:
        some, centre, block = coefficients[:, part], mean[part], gram[part][:, part]
        second = probability @ ((some @ block) * some).sum(dim=1)
        return float(size * (second - centre @ block @ centre) + (sampled[part] * block.diagonal()).sum())

    everything = torch.ones_like(token, dtype=torch.bool)
    total = variance(everything)
    return {
        "bias": float(((mean - true) @ gram @ (mean - true)).clamp(min=0).sqrt() / (true @ gram @ true).sqrt()),
        "variance": total,
        "per_token": [variance(token == t) for t in range(len(answers.tree.levels))],
        "noise_to_signal": total / float(mean @ gram @ mean),
    }


def table(numbers: dict[str, Any]) -> Table:
    """A row an estimator; the variance by the table's logits token by token, and in all."""
    rows = numbers["table"]
    horizon = len(next(iter(rows.values()))["per_token"])
    made = Table(
        title="exact variance of the gradient (trace, an answer)",
        caption="By the logits of a table, with its share of each token t; transformer: by its weights, the first row "
        "is 1. Noise to signal is variance / |mean|^2. Bias is |E g - grad J| / |grad J|.",
    )
    made.add_column("w_t")
    for column in ("variance", *(f"t={t}" for t in range(horizon)), "noise to signal", "bias", "transformer"):
        made.add_column(column, justify="right")
    first = numbers["transformer"]["whole return"]["variance"]
    for name, row in rows.items():
        parts = (f"{x:.4f}" for x in (row["variance"], *row["per_token"]))
        whole = numbers["transformer"][name]["variance"] / first
        made.add_row(name, *parts, f"{row['noise_to_signal']:.2f}", f"{row['bias']:.3f}", f"{whole:.3f}")
    return made


def figure(numbers: dict[str, Any]) -> Figure:
    """Bars: the variance of each estimator, stacked by token; and by the transformer's weights."""
    made = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = made.subplots(1, 2, sharey=True)
    names = list(numbers["table"])
    place = np.arange(len(names))[::-1]
    base = np.zeros(len(names))
    for t in range(len(numbers["table"][names[0]]["per_token"])):
        part = np.array([numbers["table"][name]["per_token"][t] for name in names])
        left.barh(place, part, left=base, label=f"t = {t}")
        base += part
    left.set(xlabel="trace of Cov(g), by the logits of a table", yticks=place, yticklabels=names)
    left.legend(title="token", frameon=False)
    right.barh(place, [numbers["transformer"][name]["variance"] for name in names], color="gray")
    right.set(xlabel="trace of Cov(g), by a transformer's weights")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    return made
