"""Credit: the variance ladder. The credit of a token and the baseline decide how noisy the policy gradient is.

    g_hat = 1/K sum_k sum_t grad log pi(a_t|s_t) (w_t - b),        K completions of one prompt

w_t is the whole return, the reward to go, or Q. b is zero, the prompt's value V(s_0) (which a mean return estimates),
the mean of the batch, the mean of the other completions, or V(s_t), which turns the reward to go and Q into advantages.
Every batch of K completions is enumerated with its probability, so that mean and covariance of g_hat are exact. Only
the learned V is sampled: it is the mean reward to go of 64 sampled completions in each state. Twenty random toys, each
with the policy halfway to its optimum; gradients with respect to the logits of a table (a parameter per state and
action).

The measure is noise to signal, tr Cov(g_hat) / |E g_hat|^2: an estimator that is merely scaled down has less variance
and is no better. By Rao-Blackwell Q is below the reward to go; no theorem puts the reward to go below the whole return.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from agents.files import JsonObject
from agents.functional import batch_mean, gae, leave_one_out, reward_to_go
from agents.verification import Enumeration
from experiments.lecture.gram import tabular_gram
from experiments.lecture.memo import Remember, no_memo
from experiments.lecture.policies import interpolated_policy
from textenv import EnvLike

TASK_SEEDS = tuple(range(20))
BATCH = 4  # K, completions of the prompt: REINFORCE's num_generations
CONTINUATIONS = 4
SAMPLED_COMPLETIONS = 64  # for the learned V


RUNGS = (
    "whole return",
    "whole return - V(s_0)",
    "reward to go",
    "reward to go - V(s_0)",
    "reward to go - batch mean",
    "reward to go - leave-one-out",
    "reward to go - V(s_t)",
    "Q, 4 continuations",
    "Q",
    "Q - V(s_0)",
    "advantage, exact V",
    "GAE(0.95), learned V",
    "advantage, learned V",
)


class Rung(NamedTuple):
    """An estimator: w_t - b in every batch, [M, K, T], and the variance of w_t given the batch, [N, T], or None.

    Where the weights of a completion do not depend on the others, batches of one (K = 1) suffice.
    """

    weights: Tensor
    noise: Tensor | None = None


def measure(memo: Remember = no_memo) -> JsonObject:
    """For each estimator, lists over the toys: bias, variance (total and by token), noise to signal."""
    rows: JsonObject = {}
    for seed in TASK_SEEDS:
        for name, numbers in memo(f"toy {seed}", partial(on_toy, seed)).items():
            for key, value in numbers.items():
                rows.setdefault(name, {}).setdefault(key, []).append(value)
    return rows


def on_toy(seed: int) -> dict[str, JsonObject]:
    """The numbers of each estimator (see `bias_and_variance`) on one toy."""
    completions = Enumeration.of(interpolated_policy(toy(seed), 0.5))
    gram = tabular_gram(completions)
    learned = completions.look_up(values_from_samples(completions, np.random.default_rng(seed)))
    return {name: bias_and_variance(completions, rung, gram) for name, rung in ladder(completions, learned).items()}


def toy(seed: int) -> EnvLike:
    """A task with one prompt and 31 completions."""
    return gym.make("textenv/Toy-v0", vocab_size=3, max_new_tokens=4, num_prompts=1, task_seed=seed)


def batches(completions: Enumeration, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Every batch of K completions of the toy's one prompt, in any order: rows [M, K] and probability [M]."""
    count = len(completions.probability)
    rows = torch.tensor(list(itertools.combinations_with_replacement(range(count), size)))
    times = torch.zeros(len(rows), count, dtype=torch.float64).scatter_add_(1, rows, torch.ones(rows.shape).double())
    orders = math.factorial(size) / torch.exp(torch.lgamma(times + 1).sum(dim=1))
    return rows, orders * completions.probability[rows].prod(dim=1)


def values_from_samples(completions: Enumeration, rng: np.random.Generator, count: int = SAMPLED_COMPLETIONS) -> Tensor:
    """A learned V, [S]: the mean reward to go of sampled completions (the least squares fit); 0 in unvisited states."""
    sampled = rng.choice(len(completions.probability), count, p=completions.probability.numpy())
    states, mask = completions.states[sampled], completions.mask[sampled]
    to_go = reward_to_go(completions.rewards, completions.mask)[sampled]
    total, occupancy = torch.zeros(2, len(completions.tree.prompt), dtype=torch.float64)
    total.scatter_add_(0, states[mask], to_go[mask])
    occupancy.scatter_add_(0, states[mask], torch.ones_like(to_go[mask]))
    return torch.where(occupancy > 0, total / occupancy, 0.0)


def ladder(completions: Enumeration, learned: Tensor) -> dict[str, Rung]:
    """Returns every rung; `learned` is the learned V(s_t), [N, T]."""
    rewards, mask, evaluation = completions.rewards, completions.mask, completions.evaluation
    rows, _ = batches(completions)
    to_go = reward_to_go(rewards, mask)
    whole = to_go[:, :1].expand_as(to_go)
    returns = to_go[:, 0][rows]
    q_values, values = completions.look_up(evaluation.q_values), completions.look_up(evaluation.values)
    first = values[:, :1]
    # given (s_t, a_t), a mean over continuations is Q plus noise that is independent of the batch
    spread = completions.conditional_mean(completions.edges, (to_go - q_values) ** 2)
    each = {
        "whole return": whole,
        "whole return - V(s_0)": whole - first,
        "reward to go": to_go,
        "reward to go - V(s_0)": to_go - first,
        "reward to go - V(s_t)": gae(rewards, values, mask, gae_lambda=1.0),
        "Q": q_values,
        "Q - V(s_0)": q_values - first,
        "advantage, exact V": gae(rewards, values, mask, gae_lambda=0.0),
        "GAE(0.95), learned V": gae(rewards, learned, mask, gae_lambda=0.95),
        "advantage, learned V": gae(rewards, learned, mask, gae_lambda=0.0),
    }
    rungs = {name: Rung(weights[:, None]) for name, weights in each.items()}
    rungs["reward to go - batch mean"] = Rung(to_go[rows] - torch.vmap(batch_mean)(returns)[:, :, None])
    others = leave_one_out(returns.flatten(), BATCH).view(-1, BATCH, 1)
    rungs["reward to go - leave-one-out"] = Rung(to_go[rows] - others)
    rungs[f"Q, {CONTINUATIONS} continuations"] = Rung(q_values[:, None], spread / CONTINUATIONS)
    return {name: rungs[name] for name in RUNGS}


def bias_and_variance(completions: Enumeration, rung: Rung, gram: Tensor) -> JsonObject:
    """Bias and variance of one estimator; `gram` [S V, S V] holds grad log pi(a|s) . grad log pi(b|s').

    Returns:
        `bias`: |E g_hat - grad J| / |grad J|; `variance`: tr Cov(g_hat) for one completion (K times that of a batch);
        `per_token`: the same for the terms of each t; `noise_to_signal`: variance / |E g_hat|^2.
    """
    size = rung.weights.shape[1]
    rows, probability = batches(completions, size)
    masked = torch.where(completions.mask[rows], rung.weights, 0.0)
    coefficients = torch.zeros(len(rows), len(gram), dtype=torch.float64)
    coefficients.scatter_add_(1, completions.edges[rows].flatten(1), masked.flatten(1) / size)
    noise = torch.zeros(len(gram), dtype=torch.float64)  # expected on each edge, per completion
    if rung.noise is not None:
        noise.scatter_add_(0, completions.edges.flatten(), (completions.token_weights() * rung.noise).flatten())

    evaluation = completions.evaluation
    true = torch.as_tensor(
        (evaluation.occupancy[:, None] * np.exp(evaluation.log_probs) * evaluation.advantages).ravel()
    )
    mean = probability @ coefficients
    levels = completions.tree.levels
    time = np.repeat(np.arange(len(levels)), [level.stop - level.start for level in levels])
    token = torch.as_tensor(time).repeat_interleave(completions.tree.mdp.vocab_size)

    def variance(part: Tensor) -> float:
        some, centre, block = coefficients[:, part], mean[part], gram[part][:, part]
        second = probability @ ((some @ block) * some).sum(dim=1)
        return float(size * (second - centre @ block @ centre) + (noise[part] * block.diagonal()).sum())

    total = variance(torch.ones_like(token, dtype=torch.bool))
    return {
        "bias": float(((mean - true) @ gram @ (mean - true)).clamp(min=0).sqrt() / (true @ gram @ true).sqrt()),
        "variance": total,
        "per_token": [variance(token == t) for t in range(len(levels))],
        "noise_to_signal": total / float(mean @ gram @ mean),
    }


def relative(numbers: JsonObject, name: str, key: str) -> NDArray[np.float64]:
    """The numbers of a rung divided by those of the whole return, for each toy."""
    ratio: NDArray[np.float64] = np.array(numbers[name][key]) / np.array(numbers["whole return"][key])
    return ratio


def table(numbers: JsonObject) -> Table:
    """A row per estimator."""
    horizon = len(numbers["whole return"]["per_token"][0])
    result = Table(
        title=f"exact variance of the gradient, {len(numbers['whole return']['bias'])} toys",
        caption="Relative to the whole return on the same toy, median [lowest, highest]. Variance is tr Cov of the "
        "gradient; t: the median share of token t in it (medians need not sum to 100%). Bias is "
        "|E g - grad J| / |grad J|, median.",
    )
    result.add_column("w_t - b")
    for column in ("noise / signal", "variance", *(f"t={t}" for t in range(horizon)), "bias"):
        result.add_column(column, justify="right")
    for name, row in numbers.items():
        cells = []
        for key in ("noise_to_signal", "variance"):
            ratio = relative(numbers, name, key)
            cells.append(f"{np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]")
        shares = np.median(np.array(row["per_token"]) / np.array(row["variance"])[:, None], axis=0)
        result.add_row(name, *cells, *(f"{share:.0%}" for share in shares), f"{np.median(row['bias']):.2f}")
    return result


def figure(numbers: JsonObject) -> Figure:
    """Dots, one per toy: noise to signal over that of the whole return. Bars: the variance by token."""
    fig = Figure(figsize=(12, 4.6), layout="constrained")
    noise, tokens = fig.subplots(1, 2, sharey=True)
    names = list(numbers)
    places = np.arange(len(names))[::-1]
    base = np.zeros(len(names))
    parts = {name: np.mean(np.array(numbers[name]["per_token"]), axis=0) for name in names}
    for t in range(len(parts[names[0]])):
        part = np.array([parts[name][t] for name in names])
        tokens.barh(places, part, left=base, label=f"t = {t}")
        base += part
    for place, name in zip(places, names, strict=True):
        ratio = relative(numbers, name, "noise_to_signal")
        biased = np.median(numbers[name]["bias"]) > 1e-6
        noise.plot(ratio, np.full(len(ratio), place), ".", color="gray", alpha=0.5)
        noise.plot(np.median(ratio), place, "o", color="C3" if biased else "C0", fillstyle="none" if biased else "full")
    noise.axvline(1, color="gray", ls=":", lw=1)
    noise.set(xscale="log", xlabel="noise / signal over that of the whole return (hollow: biased)")
    noise.set_yticks(places, names)
    tokens.set(xlabel="tr Cov(g), mean over the toys")
    tokens.legend(title="token", frameon=False)
    for axis in (noise, tokens):
        axis.spines[["top", "right"]].set_visible(False)
    return fig
