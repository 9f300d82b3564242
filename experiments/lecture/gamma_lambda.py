"""gamma and lambda: how much of the chance in a text GAE lets into the advantage, and how much of the critic's error.

    A_hat_t = sum_l (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l}))

lambda = 1 trusts the samples: no bias, whatever V says; lambda = 0 trusts V: no variance here, V's errors. gamma < 1
forgets what is paid late, and text is paid last. For every state and action of a toy the distribution of A_hat over all
continuations is enumerated and compared with the exact advantage (gamma = 1). What A_hat is off by in a whole state is
a baseline and does not change the expected gradient, so it is taken off first. V is fitted to the returns of each
gamma, as the agents do it. (Schulman et al. 2016, arXiv:1506.02438, section 3.)
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.functional import gae
from experiments.lecture.enumeration import Enumeration, started_policy
from experiments.lecture.value_head import fit_values, with_new_critic
from textenv import exact

GAMMAS = (0.8, 0.9, 0.95, 1.0)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
CRITIC_STEPS = 40  # a critic that knows something, not all


def measure() -> dict[str, Any]:
    """Bias, standard deviation and root mean squared error of A_hat over the grid, for a learned V."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=6, num_prompts=2, task_seed=0)
    policy = started_policy(env)
    answers = Enumeration.of(exact.evaluate(env, policy))
    learned = {}
    for gamma in GAMMAS:
        critic = with_new_critic(policy, separate=True)
        for _ in fit_values(env, critic, CRITIC_STEPS, gamma):
            pass
        learned[gamma] = answers.learned_values(critic)
    weight = answers.visit_weights()
    advantages = answers.look_up(answers.evaluation.advantages)
    return {
        "spread_of_advantage": float(((weight * advantages**2).sum() / weight.sum()).sqrt()),
        "grid": [errors(answers, learned[gamma], gamma, lam) for gamma in GAMMAS for lam in LAMBDAS],
    }


def errors(answers: Enumeration, values: Tensor, gamma: float, gae_lambda: float) -> dict[str, float]:
    """Root mean squared bias, standard deviation and both, of A_hat given (s, a), over the tokens that are written."""
    estimate = gae(answers.rewards, values, answers.mask, gamma, gae_lambda)
    estimate = estimate - answers.conditional_mean(answers.states, estimate)
    expected = answers.conditional_mean(answers.edges, estimate)
    weight = answers.visit_weights() / answers.visit_weights().sum()
    true = answers.look_up(answers.evaluation.advantages)
    bias = (weight * (expected - true) ** 2).sum()
    variance = (weight * (estimate - expected) ** 2).sum()
    return {
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "bias": float(bias.sqrt()),
        "std": float(variance.sqrt()),
        "rmse": float((bias + variance).sqrt()),
    }


def table(numbers: dict[str, Any]) -> Table:
    """A row a lambda; bias / standard deviation in each cell."""
    made = Table(
        title="GAE with a learned V, less its mean in the state, against the exact advantage: bias / std",
        caption=f"Root mean squares over tokens; the advantage's own is {numbers['spread_of_advantage']:.3f}. "
        "* least root mean squared error of one sample.",
    )
    made.add_column("lambda")
    for gamma in GAMMAS:
        made.add_column(f"gamma = {gamma}", justify="right")
    best = min(row["rmse"] for row in numbers["grid"])
    for lam in LAMBDAS:
        rows = [row for row in numbers["grid"] if row["gae_lambda"] == lam]
        cells = (f"{r['bias']:.3f} / {r['std']:.3f}{'*' if r['rmse'] == best else ' '}" for r in rows)
        made.add_row(str(lam), *cells)
    return made


def figure(numbers: dict[str, Any]) -> Figure:
    """Heat maps of bias, standard deviation and error over the grid."""
    made = Figure(figsize=(13, 3.2), layout="constrained")
    top = max(row["rmse"] for row in numbers["grid"])
    titles = {"bias": "bias given the state's mean", "std": "standard deviation", "rmse": "root mean squared error"}
    for axis, (name, title) in zip(made.subplots(1, 3, sharey=True), titles.items(), strict=True):
        grid = np.array([row[name] for row in numbers["grid"]]).reshape(len(GAMMAS), len(LAMBDAS))
        axis.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axis.set_xticks(range(len(LAMBDAS)), [str(lam) for lam in LAMBDAS])
        axis.set_yticks(range(len(GAMMAS)), [str(gamma) for gamma in GAMMAS])
        axis.set(title=title, xlabel="lambda", ylabel="gamma" if name == "bias" else "")
        for (y, x), value in np.ndenumerate(grid):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 * top else "black")
    return made
