"""gamma and lambda: how much of the return's randomness and of the critic's error GAE lets into the advantage.

    A_hat_t = sum_l (gamma lambda)^l (r_{t+l} + gamma V(s_{t+l+1}) - V(s_{t+l}))

lambda = 1 uses the samples: no bias, whatever V is. lambda = 0 uses V: no variance here, but V's errors. gamma < 1
discounts late rewards, and the score of a completion comes last. For every state and action of a toy the distribution
of A_hat over all continuations is enumerated and compared with the exact advantage (gamma = 1). An error that A_hat has
in common for all actions of a state is a baseline and does not change the expected gradient, so it is subtracted first.
V is fitted to the returns of each gamma, as in the agents. (Schulman et al. 2016, arXiv:1506.02438, section 3.)
"""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from agents.files import JsonObject
from agents.functional import gae
from agents.policy import TransformerPolicy
from agents.verification import Enumeration
from experiments.lecture.memo import Remember, no_memo
from experiments.lecture.policies import partly_trained_policy
from experiments.lecture.value_head import fit_values, with_new_critic
from textenv import EnvLike, exact

GAMMAS = (0.8, 0.9, 0.95, 1.0)
LAMBDAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
CRITIC_STEPS = 40  # a partly trained critic


def measure(memo: Remember = no_memo) -> JsonObject:
    """Bias, standard deviation and root mean squared error of A_hat over the grid, for a learned V."""
    env = gym.make("textenv/Toy-v0", vocab_size=4, max_new_tokens=6, num_prompts=2, task_seed=0)
    policy = partly_trained_policy(env)
    completions = Enumeration.of(exact.evaluate(env, policy))
    rows = [memo(f"gamma {gamma}", partial(over_lambdas, env, policy, completions, gamma)) for gamma in GAMMAS]
    weight = completions.token_weights()
    advantages = completions.look_up(completions.evaluation.advantages)
    return {
        "spread_of_advantage": float(((weight * advantages**2).sum() / weight.sum()).sqrt()),
        "grid": [row for row_of_gamma in rows for row in row_of_gamma],
    }


def over_lambdas(
    env: EnvLike, policy: TransformerPolicy, completions: Enumeration, gamma: float
) -> list[dict[str, float]]:
    """`errors` for each lambda, with a V that is learned for this gamma."""
    critic = with_new_critic(policy, separate=True)
    for _ in fit_values(env, critic, CRITIC_STEPS, gamma):
        pass
    learned = completions.learned_values(critic)
    return [errors(completions, learned, gamma, lam) for lam in LAMBDAS]


def errors(completions: Enumeration, values: Tensor, gamma: float, gae_lambda: float) -> dict[str, float]:
    """Root mean squared bias, standard deviation and total error of A_hat given (s, a), over the tokens."""
    estimate = gae(completions.rewards, values, completions.mask, gamma, gae_lambda)
    estimate = estimate - completions.conditional_mean(completions.states, estimate)
    expected = completions.conditional_mean(completions.edges, estimate)
    weight = completions.token_weights() / completions.token_weights().sum()
    true = completions.look_up(completions.evaluation.advantages)
    bias = (weight * (expected - true) ** 2).sum()
    variance = (weight * (estimate - expected) ** 2).sum()
    return {
        "gamma": gamma,
        "gae_lambda": gae_lambda,
        "bias": float(bias.sqrt()),
        "std": float(variance.sqrt()),
        "rmse": float((bias + variance).sqrt()),
    }


def table(numbers: JsonObject) -> Table:
    """A row per lambda, a column per gamma; bias / standard deviation in each cell."""
    result = Table(
        title="GAE with a learned V, less its mean in the state, against the exact advantage: bias / std",
        caption=f"Root mean squares over tokens; the advantage's own is {numbers['spread_of_advantage']:.3f}. "
        "* least root mean squared error of one sample.",
    )
    result.add_column("lambda")
    for gamma in GAMMAS:
        result.add_column(f"gamma = {gamma}", justify="right")
    best = min(row["rmse"] for row in numbers["grid"])
    for lam in LAMBDAS:
        rows = [row for row in numbers["grid"] if row["gae_lambda"] == lam]
        cells = (f"{r['bias']:.3f} / {r['std']:.3f}{'*' if r['rmse'] == best else ' '}" for r in rows)
        result.add_row(str(lam), *cells)
    return result


def figure(numbers: JsonObject) -> Figure:
    """Heat maps of bias, standard deviation and error over the grid."""
    fig = Figure(figsize=(13, 3.2), layout="constrained")
    top = max(row["rmse"] for row in numbers["grid"])
    titles = {"bias": "bias given the state's mean", "std": "standard deviation", "rmse": "root mean squared error"}
    for axis, (name, title) in zip(fig.subplots(1, 3, sharey=True), titles.items(), strict=True):
        grid = np.array([row[name] for row in numbers["grid"]]).reshape(len(GAMMAS), len(LAMBDAS))
        axis.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        axis.set_xticks(range(len(LAMBDAS)), [str(lam) for lam in LAMBDAS])
        axis.set_yticks(range(len(GAMMAS)), [str(gamma) for gamma in GAMMAS])
        axis.set(title=title, xlabel="lambda", ylabel="gamma" if name == "bias" else "")
        for (y, x), value in np.ndenumerate(grid):
            axis.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 * top else "black")
    return fig
